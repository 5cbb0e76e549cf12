#include "llama-impl.h"

void llama_clear_tensor_data(ggml_tensor * t);
