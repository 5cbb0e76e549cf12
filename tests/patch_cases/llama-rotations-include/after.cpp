#include "llama-graph.h"
// pyggmlq:begin llama-rotations-include
#include "llama-ggmlq.h"
// pyggmlq:end llama-rotations-include

#include "llama-impl.h"

static void build() {
    if (inp->self_k_rot) {
    }
}
