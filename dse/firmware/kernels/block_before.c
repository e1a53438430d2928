/* needs: rolled */
/* Where in a list of columns, from `at` to before `last`, those of `column` and behind it begin. */
static inline int32_t listed_before(const uint16_t *list, int32_t at, int32_t last, int32_t column)
{
    ROLLED
    while (at < last && list[at] < column) {
        at++;
    }
    return at;
}
