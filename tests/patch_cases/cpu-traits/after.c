static const struct ggml_type_traits_cpu type_traits_cpu[GGML_TYPE_COUNT] = {
// pyggmlq:begin cpu-traits
#include "ggml-cpu-ggmlq-traits.inc"
// pyggmlq:end cpu-traits
    [GGML_TYPE_F32] = {
    },
};
