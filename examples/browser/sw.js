// Keeps all that this page needs, so that it works without a network. What the network has is taken first, so that a new
// model reaches people at once; after three seconds, or without a network, what was kept.

const KEPT = "vit-edge";
const PATIENCE = 3000; // milliseconds
const FILES = ["./", "style.css", "page.mjs", "worker.mjs", "devices.mjs", "icon.svg"];

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(KEPT).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === self.location.origin) event.respondWith(answer(event));
});

async function answer(event) {
  const cache = await caches.open(KEPT);
  const kept = await cache.match(event.request, { ignoreSearch: true });
  const fresh = fetch(event.request, { cache: "no-cache" }).then((found) => {
    if (found.ok) event.waitUntil(cache.put(event.request, found.clone()));
    return found;
  });
  if (!kept) return fresh;
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE, kept));
  event.waitUntil(fresh.catch(() => null)); // a slow download still arrives, for the next time
  return Promise.race([fresh.catch(() => kept), late]);
}
