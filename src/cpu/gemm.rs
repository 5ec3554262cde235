//! Matrix products on the CPU, by the `gemm` crate: serial and parallel results agree bit for bit.

/// A row-major view of a matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, R> {
    /// Holds the matrix from its first element on.
    pub data: &'a [R],
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub column: usize,
}

impl<'a, R> Matrix<'a, R> {
    /// Rows of `columns` elements, one after another.
    pub fn new(data: &'a [R], columns: usize) -> Self {
        Matrix { data, row: columns, column: 1 }
    }
    /// Rows at a distance.
    pub fn strided(data: &'a [R], row: usize) -> Self {
        Matrix { data, row, column: 1 }
    }
    /// The transpose, by exchanging the strides.
    pub fn t(self) -> Self {
        Matrix { data: self.data, row: self.column, column: self.row }
    }
}

/// How many threads a product may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The caller's only: it is itself one of many.
    One,
    /// All of the current rayon pool, where the product is large enough to gain.
    All,
}

/// An element type with a matrix product.
pub trait Gemm: Sized + Copy + 'static {
    /// C ← α·A·B + β·C with A m×k, B k×n and C m×n, rows of C at distance `c_row`. With β = 0, C is not read.
    ///
    /// # Panics
    /// If a slice is too short for its matrix.
    #[allow(clippy::too_many_arguments)]
    fn gemm(
        mnk: (usize, usize, usize),
        alpha: Self,
        a: Matrix<Self>,
        b: Matrix<Self>,
        beta: Self,
        c: &mut [Self],
        c_row: usize,
        threads: Threads,
    );
}

/// Elements that a slice must hold for an m×n matrix with these strides.
fn span(rows: usize, columns: usize, row: usize, column: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row + (columns - 1) * column + 1 }
}

macro_rules! gemm_for {
    ($t:ident) => {
        impl Gemm for $t {
            fn gemm(
                (m, n, k): (usize, usize, usize),
                alpha: Self,
                a: Matrix<Self>,
                b: Matrix<Self>,
                beta: Self,
                c: &mut [Self],
                c_row: usize,
                threads: Threads,
            ) {
                assert!(a.data.len() >= span(m, k, a.row, a.column), "A is too short");
                assert!(b.data.len() >= span(k, n, b.row, b.column), "B is too short");
                assert!(c.len() >= span(m, n, c_row, 1) && c_row >= n, "C is too short");
                // Below this much work a second thread costs more than it gives.
                let parallel = threads == Threads::All && m * n * k > 1 << 17 && rayon::current_num_threads() > 1;
                let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
                // SAFETY: the three assertions above show that every element that the strides reach lies in
                // its slice, and `c` is borrowed exclusively.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        c.as_mut_ptr(),
                        1,
                        c_row as isize,
                        beta != 0.0,
                        a.data.as_ptr(),
                        a.column as isize,
                        a.row as isize,
                        b.data.as_ptr(),
                        b.column as isize,
                        b.row as isize,
                        beta,
                        alpha,
                        false,
                        false,
                        false,
                        parallelism,
                    )
                }
            }
        }
    };
}
gemm_for!(f32);
gemm_for!(f64);
