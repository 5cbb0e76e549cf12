static const struct ggml_type_traits type_traits[GGML_TYPE_COUNT] = {
// pyggmlq:begin core-traits
#include "ggml-ggmlq-traits.inc"
// pyggmlq:end core-traits
    [GGML_TYPE_I8] = {
    },
};
