#include "llama-impl.h"
// pyggmlq:begin llama-state-clear-include
#include "llama-ggmlq-state.h"
// pyggmlq:end llama-state-clear-include

void llama_clear_tensor_data(ggml_tensor * t);
