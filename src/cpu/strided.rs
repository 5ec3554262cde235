//! Tensors as CPU ops see them: data, shape and strides, so that packed projections are read in place.

use crate::cpu::Real;
use std::marker::PhantomData;
use std::ops::Range;

/// A tensor that is read. `data` starts at the tensor's first element and ends at its last.
#[derive(Debug, Clone, Copy)]
pub struct Ref<'a, R> {
    /// From the first element to the last; with strides there may be others' elements between.
    pub data: &'a [R],
    /// Sizes.
    pub shape: &'a [usize],
    /// Elements from one index to the next, per axis.
    pub strides: &'a [usize],
}

/// A tensor that is written. Several may interleave in one buffer (the query, key and value parts of a packed
/// projection), with no element in common.
#[derive(Debug, Clone, Copy)]
pub struct Mut<'a, R> {
    data: *mut R,
    len: usize,
    /// Sizes.
    pub shape: &'a [usize],
    /// Elements from one index to the next, per axis.
    pub strides: &'a [usize],
    lifetime: PhantomData<&'a mut [R]>,
}

// SAFETY: a `Mut` stands for exclusive access to its elements, as `&mut [R]` does; sharing it between threads
// gives nothing but `unsafe` access, whose callers keep the rows apart.
unsafe impl<R: Send> Send for Mut<'_, R> {}
// SAFETY: as above.
unsafe impl<R: Send> Sync for Mut<'_, R> {}

/// Whether these strides put the elements one after another in row-major order.
pub fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 && stride != expected {
            return false;
        }
        expected *= size;
    }
    true
}

/// Row-major strides of a shape.
pub fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Elements from the first to the last, both counted; 0 for an empty shape.
pub fn span(shape: &[usize], strides: &[usize]) -> usize {
    if shape.contains(&0) { 0 } else { 1 + shape.iter().zip(strides).map(|(&n, &s)| (n - 1) * s).sum::<usize>() }
}

impl<'a, R: Real> Ref<'a, R> {
    /// All elements in order.
    ///
    /// # Panics
    /// If the tensor is strided: ops that call this do not accept strided inputs, and the graph refuses them.
    pub fn contiguous(&self) -> &'a [R] {
        assert!(is_contiguous(self.shape, self.strides), "a contiguous tensor was expected");
        self.data
    }

    /// The row at these leading indices (all axes but the last, whose stride must be 1).
    pub fn row(&self, index: &[usize]) -> &'a [R] {
        let start: usize = index.iter().zip(self.strides).map(|(i, s)| i * s).sum();
        &self.data[start..start + self.shape[self.shape.len() - 1]]
    }

    /// For a (B,H,T,D) tensor: the elements of one batch and head from its first row on, and the distance of rows.
    pub fn head(&self, b: usize, h: usize) -> (&'a [R], usize) {
        let start = b * self.strides[0] + h * self.strides[1];
        let len = span(&self.shape[2..], &self.strides[2..]);
        (if len == 0 { &[] } else { &self.data[start..start + len] }, self.strides[2])
    }
}

impl<'a, R: Real> Mut<'a, R> {
    /// A tensor over exclusively borrowed data.
    ///
    /// # Panics
    /// If the data is shorter than the strides reach.
    pub fn new(data: &'a mut [R], shape: &'a [usize], strides: &'a [usize]) -> Self {
        assert!(data.len() >= span(shape, strides), "data shorter than its strides reach");
        Mut { data: data.as_mut_ptr(), len: data.len(), shape, strides, lifetime: PhantomData }
    }

    /// A tensor over raw memory.
    ///
    /// # Safety
    /// For `'a`, nothing else reads or writes the elements that shape and strides reach from `data`.
    pub unsafe fn from_raw(data: *mut R, shape: &'a [usize], strides: &'a [usize]) -> Self {
        Mut { data, len: span(shape, strides), shape, strides, lifetime: PhantomData }
    }

    /// All elements in order.
    ///
    /// # Panics
    /// If the tensor is strided.
    pub fn contiguous(&mut self) -> &'a mut [R] {
        assert!(is_contiguous(self.shape, self.strides), "a contiguous tensor was expected");
        // SAFETY: contiguous, so its span holds exactly its own elements, to which it has exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: R) {
        let (columns, leading) = match self.shape.split_last() {
            None => (1, &[] as &[usize]),
            Some((&columns, leading)) => (columns, leading),
        };
        if columns == 0 || leading.contains(&0) {
            return;
        }
        let column = self.strides.last().copied().unwrap_or(1);
        let mut index = vec![0; leading.len()];
        for _ in 0..leading.iter().product::<usize>() {
            let start: usize = index.iter().zip(self.strides).map(|(i, s)| i * s).sum();
            for c in 0..columns {
                // SAFETY: an index within the shape, so one of this tensor's own elements.
                unsafe { *self.data.add(start + c * column) = value };
            }
            for axis in (0..leading.len()).rev() {
                index[axis] += 1;
                if index[axis] < leading[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }

    /// For a (B,H,T,D) tensor: the rows of one batch and head.
    ///
    /// # Safety
    /// As [`Mut::row`]: of these rows, the holder writes only those that no one else refers to meanwhile.
    ///
    /// # Panics
    /// If an index is out of range.
    pub unsafe fn head(&self, b: usize, h: usize) -> Rows<'a, R> {
        let (&[batch, heads, rows, columns], strides) = (self.shape.first_chunk().expect("4 axes"), self.strides);
        assert!(b < batch && h < heads);
        let data = self.data.wrapping_add(b * strides[0] + h * strides[1]);
        Rows { data, rows, columns, stride: strides[2], lifetime: PhantomData }
    }

    /// The row at these leading indices (all axes but the last, whose stride must be 1).
    ///
    /// # Safety
    /// No other reference to the same row is alive: each row is handled by one thread, once at a time.
    ///
    /// # Panics
    /// If an index is out of range.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, index: &[usize]) -> &'a mut [R] {
        assert!(index.len() + 1 == self.shape.len() && index.iter().zip(self.shape).all(|(i, n)| i < n));
        let start: usize = index.iter().zip(self.strides).map(|(i, s)| i * s).sum();
        let columns = self.shape[self.shape.len() - 1];
        // SAFETY: in range by the assertion, of this tensor's own elements, and exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), columns) }
    }

    /// Some columns of the row at these leading indices.
    ///
    /// # Safety
    /// No other reference to these elements is alive.
    ///
    /// # Panics
    /// If an index or a column is out of range.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, index: &[usize], columns: Range<usize>) -> &'a mut [R] {
        assert!(index.len() + 1 == self.shape.len() && index.iter().zip(self.shape).all(|(i, n)| i < n));
        assert!(columns.start <= columns.end && columns.end <= self.shape[index.len()], "columns of the row");
        let start: usize = index.iter().zip(self.strides).map(|(i, s)| i * s).sum::<usize>() + columns.start;
        // SAFETY: in range by the assertions, of this tensor's own elements, and exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), columns.len()) }
    }
}

/// Rows of one head of a tensor that several threads write, each its own rows.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, R> {
    data: *mut R,
    rows: usize,
    columns: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [R]>,
}

impl<'a, R> Rows<'a, R> {
    /// Rows of `columns` elements in a slice, `stride` apart: all that it holds.
    pub fn of(data: &'a mut [R], stride: usize, columns: usize) -> Self {
        let rows = if data.len() < columns { 0 } else { 1 + (data.len() - columns) / stride };
        Rows { data: data.as_mut_ptr(), rows, columns, stride, lifetime: PhantomData }
    }

    /// Without the first rows.
    pub fn from(self, first: usize) -> Self {
        let first = first.min(self.rows);
        Rows { data: self.data.wrapping_add(first * self.stride), rows: self.rows - first, ..self }
    }

    /// The first element, and the distance of the rows, if there are at least so many rows and columns.
    ///
    /// # Panics
    /// If there are not.
    #[inline(always)]
    pub fn block(&self, rows: usize, columns: usize) -> (*mut R, usize) {
        assert!(rows <= self.rows && columns <= self.columns, "too small for what is written");
        (self.data, self.stride)
    }

    /// A row.
    ///
    /// # Safety
    /// As [`Mut::row`].
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub unsafe fn row(&self, t: usize) -> &'a mut [R] {
        assert!(t < self.rows);
        // SAFETY: in range by the assertion, of the tensor's own elements, and exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(t * self.stride), self.columns) }
    }
}
