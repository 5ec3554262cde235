//! Tasks over the threads of the current rayon pool.

use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls `work` once with each number below `count`, and with what `init` made for the thread.
///
/// From call to call a thread begins with the same numbers, so that it finds in its cache what it left there; then it
/// takes from the others what they have not begun. Which thread runs a task decides nothing but the time.
pub fn for_tasks<T>(count: usize, init: impl Fn() -> T + Sync, work: impl Fn(&mut T, usize) + Sync) {
    let threads = rayon::current_num_threads().min(count);
    if threads <= 1 {
        let mut kept = init();
        return (0..count).for_each(|task| work(&mut kept, task));
    }
    let begin = |share: usize| share * count / threads;
    let next: Vec<AtomicUsize> = (0..threads).map(|share| AtomicUsize::new(begin(share))).collect();
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        let first = rayon::current_thread_index().unwrap_or_default();
        let mut kept = None;
        for share in (first..first + threads).map(|share| share % threads) {
            loop {
                let task = next[share].fetch_add(1, Ordering::Relaxed);
                if task >= begin(share + 1) {
                    break;
                }
                work(kept.get_or_insert_with(&init), task);
            }
        }
    });
}

/// As [`for_tasks`], with a task for each whole chunk of `len` elements, which it may write.
pub fn for_chunks<R: Send, T>(
    data: &mut [R],
    len: usize,
    init: impl Fn() -> T + Sync,
    work: impl Fn(&mut T, usize, &mut [R]) + Sync,
) {
    // Each lock is taken once, by its task.
    let chunks: Vec<Mutex<&mut [R]>> = data.chunks_exact_mut(len).map(Mutex::new).collect();
    for_tasks(chunks.len(), init, |kept, task| {
        work(kept, task, &mut chunks[task].lock().unwrap_or_else(PoisonError::into_inner));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for count in [0, 1, 2, 7, 100] {
                let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.install(|| {
                    for_tasks(
                        count,
                        || (),
                        |(), task| {
                            runs[task].fetch_add(1, Ordering::Relaxed);
                        },
                    );
                });
                assert!(runs.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {count} tasks");
            }
        }
    }
}
