#include "llama-io.h"

bool attn_rot_k = false;
