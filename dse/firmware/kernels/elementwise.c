/* What a sum or a product of two int8 tensors needs. */
typedef struct {
    int32_t elements, zero_a, zero_b, output_zero, low, high;
    int32_t multiplier, right;               /* of the result */
    int32_t multiplier_b, right_b;           /* of the second input (sums) */
} elementwise;
