struct test_lightning_indexer : public test_case {
};

static std::vector<std::unique_ptr<test_case>> make_test_cases_eval() {
    // lightning_indexer
}

static std::vector<std::unique_ptr<test_case>> make_test_cases_perf() {
    // lightning_indexer
    for (int kv : { 256 }) {
    }
}
