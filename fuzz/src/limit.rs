//! The memory that reading an input may take.

/// Runs `work`, which may hold `most` bytes at a time.
///
/// # Panics
/// When it held more.
pub(crate) fn within(most: usize, work: impl FnOnce()) {
    let held = allocation_counter::measure(work).bytes_max;
    assert!(
        held <= most as u64,
        "{held} bytes were allocated at a time, where {most} is the limit"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_does_not_count_twice() {
        within(1000, || {
            for _ in 0..3 {
                std::hint::black_box(vec![1_u8; 1000]);
            }
        });
    }

    #[test]
    #[should_panic(expected = "where 1000 is the limit")]
    fn more_than_the_limit_panics() {
        within(1000, || {
            std::hint::black_box(Vec::<u8>::with_capacity(1001));
        });
    }
}
