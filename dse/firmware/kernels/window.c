/* Geometry of a sliding window and what its int8 values need, one record an operator. */
typedef struct {
    dimension input_height, input_width, input_channels;
    dimension output_height, output_width, output_channels;
    dimension kernel_height, kernel_width;
    dimension stride_y, stride_x;
    dimension top, left; /* padding */
    dimension dilation_y, dilation_x;
    dimension input_zero, output_zero; /* zero points */
    dimension low, high;               /* fused activation */
} window;
