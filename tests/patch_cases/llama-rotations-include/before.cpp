#include "llama-graph.h"

#include "llama-impl.h"

static void build() {
    if (inp->self_k_rot) {
    }
}
