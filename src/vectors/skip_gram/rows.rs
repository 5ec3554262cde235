//! A table of vectors that many threads change at once, row by row.
//!
//! Hogwild (Niu, Recht, Ré, Wright, "HOGWILD!: A Lock-Free Approach to Parallelizing Stochastic Gradient Descent", NIPS
//! 2011) lets threads write where others read. In Rust's memory model that is a data race unless every number is an atomic,
//! and compilers make no vector instructions of atomics. So each row has a lock: hardly ever taken when it is wanted, as
//! rows are many, and in the row's own memory, so that taking it brings the row's first numbers nearer. What is given up
//! is what Hogwild gives up too: threads see rows in the order in which they come.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers in a cache line, and in the widest vector.
const LANES: usize = 16;

/// A cache line.
#[repr(C, align(64))]
struct Line(UnsafeCell<[f32; LANES]>);

/// Rows of numbers, each behind a lock.
pub struct Rows {
    /// For each row a line with the lock in its first word, and lines of numbers.
    lines: Vec<Line>,
    /// Numbers of a row, rounded up to whole lines. Those beyond the vector are 0.
    width: usize,
    dim: usize,
}

// SAFETY: the numbers of a row are reached through `with` alone, which holds the row's lock.
unsafe impl Sync for Rows {}

/// Frees a row, also when its user panics.
struct Held<'a>(&'a AtomicU32);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl Rows {
    /// `rows` rows of `dim` numbers: `value` of row and place.
    pub fn new(rows: usize, dim: usize, value: impl Fn(usize, usize) -> f32) -> Rows {
        let width = dim.next_multiple_of(LANES);
        let line = |row: usize, line: usize| {
            let number = |lane: usize| {
                // The first line is the lock's.
                let place = (line * LANES + lane).checked_sub(LANES).filter(|&place| place < dim);
                place.map_or(0.0, |place| value(row, place))
            };
            Line(UnsafeCell::new(std::array::from_fn(number)))
        };
        let lines =
            (0..rows).flat_map(|row| (0..=width / LANES).map(move |l| (row, l))).map(|(r, l)| line(r, l)).collect();
        Rows { lines, width, dim }
    }

    /// Numbers that [`Rows::with`] hands out: a multiple of 16.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Calls `work` with the numbers of a row, which nobody else reaches meanwhile. `work` must not ask for another row:
    /// two threads that do so could wait for each other.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn with<T>(&self, row: u32, work: impl FnOnce(&mut [f32]) -> T) -> T {
        let each = 1 + self.width / LANES;
        let lines = &self.lines[row as usize * each..][..each];
        // SAFETY: the first line of a row is used as this atomic only, once the table has been made; it is aligned.
        let lock = unsafe { AtomicU32::from_ptr(lines[0].0.get().cast()) };
        while lock.swap(1, Ordering::Acquire) != 0 {
            wait(lock);
        }
        let held = Held(lock);
        let numbers = lines[1..].as_ptr().cast::<f32>().cast_mut();
        // SAFETY: lines are arrays of 16 numbers without gaps, in cells that may be written through a shared reference;
        // `lines[1..]` has `width` of them, and the lock is held until they are out of use.
        let done = work(unsafe { std::slice::from_raw_parts_mut(numbers, self.width) });
        drop(held);
        done
    }

    /// Says that a row will soon be asked for, so that it is on its way from memory: taking a lock waits for what is, and
    /// looks at nothing beyond.
    #[inline(always)]
    pub fn expect(&self, row: u32) {
        let each = 1 + self.width / LANES;
        let lines = &self.lines[row as usize * each..][..each];
        #[cfg(target_arch = "x86_64")]
        for line in lines {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, which neither reads nor writes as far as a program can see.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.0.get().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = lines;
    }

    /// All numbers of all rows, one row after another.
    pub fn values(&mut self) -> Vec<f32> {
        let each = 1 + self.width / LANES;
        let rows = self.lines.len() / each;
        (0..rows as u32).flat_map(|row| self.with(row, |numbers| numbers[..self.dim].to_vec())).collect()
    }
}

/// Waits until a lock looks free. Its holder does a handful of sums, unless the system has put it aside.
#[cold]
fn wait(lock: &AtomicU32) {
    let mut tries = 0;
    while lock.load(Ordering::Relaxed) != 0 {
        tries += 1;
        if tries < 100 { spin_loop() } else { std::thread::yield_now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_their_numbers() {
        for dim in [1, 15, 16, 17, 100] {
            let mut rows = Rows::new(3, dim, |row, place| (row * 1000 + place) as f32);
            rows.with(1, |numbers| {
                assert!(numbers.len() == dim.next_multiple_of(16) && (numbers.as_ptr() as usize).is_multiple_of(64));
                assert!(numbers[dim..].iter().all(|&x| x == 0.0));
                numbers[dim - 1] = -1.0;
            });
            let expected = |i: usize| if i == 2 * dim - 1 { -1.0 } else { (i / dim * 1000 + i % dim) as f32 };
            assert_eq!(rows.values(), (0..3 * dim).map(expected).collect::<Vec<_>>());
        }
    }

    /// Without the lock, additions would get lost.
    #[test]
    fn threads_take_turns() {
        let mut rows = Rows::new(2, 20, |_, _| 0.0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20_000u32).for_each(|i| rows.with(i % 2, |x| x.iter_mut().for_each(|x| *x += 1.0))));
            }
        });
        assert_eq!(rows.values(), vec![40_000.0; 40]);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rows.with(0, |_| panic!("on purpose"))));
        assert!(caught.is_err() && rows.with(0, |x| x[0]) == 40_000.0, "a panic frees the row");
    }
}
