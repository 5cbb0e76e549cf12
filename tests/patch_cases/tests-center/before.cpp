struct test_case {};
struct test_rope : public test_case {
    const int n_dims;
};
