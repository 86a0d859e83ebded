"""The same model files on other CPUs, emulated, and in other runtimes: `python -m tools.devices --help`.

In reading order:
    cpus        the CPUs that can be emulated, and what Linux says about them
    root        an ARM64 user space with Python and the runtime's packages, from nothing
    emulate     the command line that runs Python on an emulated CPU
    probe       runs there: labels, distance from float and kernels of one artifact
    engines     the same figures from OpenVINO and from JavaScript, by engine.mjs
    models      the digits model, exported once per target
    __main__    the command line
    without_vnni, as_intel   a command on this machine, its `cpuid` answered as by another CPU
"""
