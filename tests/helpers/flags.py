"""How the tests let XLA compile: this module is read before jax is."""

# Tiny models spend their time in the compiler: these take two thirds of it away. Extra
# options that another jaxlib does not know are no error.
QUICK = (
    "--xla_backend_optimization_level=0"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
