#include "llama-io.h"
// pyggmlq:begin llama-state-cache-include
#include "llama-ggmlq-state.h"
// pyggmlq:end llama-state-cache-include

bool attn_rot_k = false;
