void op_0() {
    switch (type) {
        // pyggmlq:begin cpu-ops-switches
        case GGML_TYPE_TQ3_0:
        case GGML_TYPE_PLANAR3:
        // pyggmlq:end cpu-ops-switches
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
            return;
    }
}
void op_1() {
    switch (type) {
        // pyggmlq:begin cpu-ops-switches
        case GGML_TYPE_TQ3_0:
        case GGML_TYPE_PLANAR3:
        // pyggmlq:end cpu-ops-switches
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
            return;
    }
}
void op_2() {
    switch (type) {
        // pyggmlq:begin cpu-ops-switches
        case GGML_TYPE_TQ3_0:
        case GGML_TYPE_PLANAR3:
        // pyggmlq:end cpu-ops-switches
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
            return;
    }
}
void op_3() {
    switch (type) {
        // pyggmlq:begin cpu-ops-switches
        case GGML_TYPE_TQ3_0:
        case GGML_TYPE_PLANAR3:
        // pyggmlq:end cpu-ops-switches
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
            return;
    }
}
void op_4() {
    switch (type) {
        // pyggmlq:begin cpu-ops-switches
        case GGML_TYPE_TQ3_0:
        case GGML_TYPE_PLANAR3:
        // pyggmlq:end cpu-ops-switches
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
            return;
    }
}
void op_5() {
    switch (type) {
        // pyggmlq:begin cpu-ops-switches
        case GGML_TYPE_TQ3_0:
        case GGML_TYPE_PLANAR3:
        // pyggmlq:end cpu-ops-switches
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
            return;
    }
}
void op_6() {
    switch (type) {
        // pyggmlq:begin cpu-ops-switches
        case GGML_TYPE_TQ3_0:
        case GGML_TYPE_PLANAR3:
        // pyggmlq:end cpu-ops-switches
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
            return;
    }
}
