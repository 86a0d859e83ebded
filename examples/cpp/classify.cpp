// classify MODEL PIXELS [THREADS]: the logits of a vit-edge model, one line per image.
//
// PIXELS holds uint8 values [N, H, W, 3] as they are, one image after the other; docs/reference/model-file.md
// says how an image becomes such pixels. The labels are in the metadata; a JSON library of your choice reads them.
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

// The kind of this CPU, as the list "exact_on" in the metadata names it.
static std::string cpu_kind() {
#if defined(CPU_KIND)  // for tests: another CPU, pretended
  return CPU_KIND;
#elif defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni") || __builtin_cpu_supports("avxvnni") ? "x86-vnni" : "x86";
#elif defined(__aarch64__)
  return "arm64";
#else
  return "other";
#endif
}

// Whether the session must ask for exact kernels: its metadata lists the CPUs that need not.
static bool needs_exact_kernels(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("vit_edge", allocator);
  const std::string json = text ? text.get() : "", kind = cpu_kind();
  const size_t start = json.find("\"exact_on\": [");  // within a label the quotes would be escaped
  if (json.find("{\"version\": 2,") != 0 || start == std::string::npos)
    throw std::runtime_error("expected a vit-edge model with metadata of version 2");
  if (json.substr(start, json.find(']', start) - start).find('"' + kind + '"') != std::string::npos) return false;
  if (kind != "x86") throw std::runtime_error("this model was not tested on this kind of CPU");
  return true;
}

static int run(const char* path, const char* pixels_path, int threads) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "vit-edge");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  Ort::Session session(env, path, options);
  if (needs_exact_kernels(session)) {
    options.AddConfigEntry("session.x64quantprecision", "1");  // slower; 16-bit sums cannot overflow
    session = Ort::Session(env, path, options);
  }
  auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // [batch, H, W, 3]
  const size_t image = shape[1] * shape[2] * shape[3];
  std::ifstream file(pixels_path, std::ios::binary);
  std::vector<uint8_t> pixels{std::istreambuf_iterator<char>(file), {}};
  if (pixels.empty() || pixels.size() % image)
    throw std::runtime_error("expected PIXELS of a multiple of " + std::to_string(image) + " bytes");
  shape[0] = pixels.size() / image;
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char *in = "pixels", *out = "logits";
  auto output = session.Run(Ort::RunOptions{}, &in, &input, 1, &out, 1);

  const int64_t classes = output[0].GetTensorTypeAndShapeInfo().GetShape()[1];
  const float* logits = output[0].GetTensorData<float>();
  for (int64_t i = 0; i < shape[0] * classes; i++)  // nine digits say a float32 exactly
    std::printf("%.9g%c", logits[i], (i + 1) % classes ? ' ' : '\n');
  return 0;
}

// ONNX Runtime sends telemetry from its first Ort::Env on, unless this is 1 before it. What a user has set stays.
static void turn_telemetry_off() {
  const char* name = "ORT_DISABLE_TELEMETRY";
  const char* value = std::getenv(name);
  if (value && *value) return;
#if defined(_WIN32)
  _putenv_s(name, "1");
#else
  setenv(name, "1", 1);
#endif
}

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: classify MODEL PIXELS [THREADS]\n"), 2;
  turn_telemetry_off();
  try {
    return run(argv[1], argv[2], argc > 3 ? std::atoi(argv[3]) : 1);
  } catch (const std::exception& error) {  // Ort::Exception is one
    return std::fprintf(stderr, "classify: %s: %s\n", argv[1], error.what()), 1;
  }
}
