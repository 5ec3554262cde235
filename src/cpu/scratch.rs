//! Working memory of a thread, kept from call to call.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A cache line: what every part of the scratch starts at.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeros to work in, from a cache line on: a vector that straddles two lines takes twice as long to load.
#[derive(Debug, Clone, Default)]
pub struct Aligned<R> {
    lines: Vec<Line>,
    len: usize,
    elements: PhantomData<R>,
}

impl<R: bytemuck::Pod> Aligned<R> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let lines = vec![Line([0; 64]); (len * size_of::<R>()).div_ceil(size_of::<Line>())];
        Aligned { lines, len, elements: PhantomData }
    }
}

impl<R: bytemuck::Pod> Deref for Aligned<R> {
    type Target = [R];
    fn deref(&self) -> &[R] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<R: bytemuck::Pod> DerefMut for Aligned<R> {
    fn deref_mut(&mut self) -> &mut [R] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

thread_local! {
    static LINES: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with slices of these lengths; what they hold is left over from earlier calls.
pub fn with_scratch<R: bytemuck::Pod, T, const PARTS: usize>(
    lengths: [usize; PARTS],
    work: impl FnOnce([&mut [R]; PARTS]) -> T,
) -> T {
    let per_line = size_of::<Line>() / size_of::<R>();
    let padded = lengths.map(|n| n.next_multiple_of(per_line));
    // Taken, not borrowed: should the work ever come back here on this thread, it finds an empty vector and grows it.
    let mut lines = LINES.take();
    let needed = padded.iter().sum::<usize>() / per_line;
    if lines.len() < needed {
        lines.resize(needed, Line([0; 64]));
    }
    let mut rest: &mut [R] = bytemuck::cast_slice_mut(&mut lines);
    let parts = std::array::from_fn(|i| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(padded[i]);
        rest = after;
        &mut part[..lengths[i]]
    });
    let result = work(parts);
    LINES.set(lines);
    result
}
