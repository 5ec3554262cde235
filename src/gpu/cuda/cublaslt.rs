//! Large matrix products by cuBLASLt, where its library is on the machine. Descriptors and the heuristic's choice
//! are kept by shape: finding them takes longer than a small product itself.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;

use super::{devices, library};
use crate::gpu::driver::Matmul;
use crate::precision::Precision;

/// Whether the library is there; cudarc panics where it is called without.
pub(super) fn present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: opens and closes NVIDIA's library, whose initialisers have no preconditions.
    let plain = || unsafe { sys::is_culib_present() };
    *PRESENT.get_or_init(|| {
        if plain() {
            return true;
        }
        let find = |folders: &[_]| {
            let mut list = library::find("cublasLt", folders);
            list.retain(|found| devices::driver_major().is_none_or(|major| found.major <= major));
            library::prefer_supported(&mut list, None);
            list.into_iter().find_map(|found| library::open(found.path.as_os_str()).ok())
        };
        // Loaded by its path and kept for ever, it is found by its plain name from now on.
        let library = find(&library::system_folders()).or_else(|| find(library::python_folders()));
        library.is_some_and(|library| {
            std::mem::forget(library);
            plain()
        })
    })
}

/// What a prepared product depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    leading: [usize; 3],
    transpose: [bool; 2],
    // In what a and b, and c, are stored.
    types: [sys::cudaDataType; 2],
    // Of a, b and c: the heuristic would count on 256 bytes otherwise, and views start anywhere.
    alignment: [u32; 3],
}

/// A matrix as it lies, counted in columns: element (row, column) stands at row + column·leading.
#[derive(Debug, Clone, Copy)]
struct Stored {
    rows: usize,
    columns: usize,
    leading: usize,
    transposed: bool,
}

impl Shape {
    /// cuBLASLt counts in columns, and so sees a row-major matrix as its transpose. Hence Cᵀ = op(B)ᵀ·op(A)ᵀ is asked
    /// for: B on the left, A on the right, each with the transposition that it had. In order: left, right, result.
    fn in_columns(&self) -> [Stored; 3] {
        let Shape { m, n, k, leading: [lda, ldb, ldc], transpose: [transpose_a, transpose_b], .. } = *self;
        let stored = |rows, columns, leading, transposed| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            Stored { rows, columns, leading, transposed }
        };
        [stored(n, k, ldb, transpose_b), stored(k, m, lda, transpose_a), stored(n, m, ldc, false)]
    }
}

fn data_type(precision: Precision) -> sys::cudaDataType {
    match precision {
        Precision::F64 => sys::cudaDataType::CUDA_R_64F,
        Precision::F32 | Precision::Tf32 => sys::cudaDataType::CUDA_R_32F,
        Precision::F16 => sys::cudaDataType::CUDA_R_16F,
        Precision::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

struct Prepared {
    product: sys::cublasLtMatmulDesc_t,
    left: sys::cublasLtMatrixLayout_t,
    right: sys::cublasLtMatrixLayout_t,
    result: sys::cublasLtMatrixLayout_t,
    algorithm: Option<sys::cublasLtMatmulAlgo_t>,
}

/// The library's handle with its workspace.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    /// Address of the workspace: one for all products, for they run one after the other on one stream.
    pub workspace: u64,
    /// Its size.
    pub workspace_bytes: usize,
    prepared: Mutex<HashMap<Shape, Prepared>>,
}

// SAFETY: cuBLASLt's functions may be called from any thread; descriptors are written only while they are prepared,
// under the lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// NVIDIA's recommendation by compute capability.
pub(super) fn workspace_bytes(sm: u32) -> usize {
    if sm >= 90 { 32 << 20 } else { 4 << 20 }
}

impl CublasLt {
    /// In the current context, with a workspace that outlives this. `None` where the library is absent or too new
    /// for the driver: then the caller's own product serves.
    ///
    /// # Safety
    /// The context stays current or is made so before each call; `workspace` is 256-byte aligned device memory.
    pub unsafe fn new(workspace: u64, workspace_bytes: usize) -> Option<Self> {
        let handle = result::create_handle().ok()?;
        Some(CublasLt { handle, workspace, workspace_bytes, prepared: Mutex::default() })
    }

    /// C ← op(A)·op(B) + β·C. `Ok(false)`: the library has no algorithm for it.
    ///
    /// # Safety
    /// As [`crate::gpu::driver::Driver::matmul`]; `stream` belongs to the context of `new`, which is current.
    pub unsafe fn run(&self, product: &Matmul, stream: CUstream) -> Result<bool, CublasError> {
        let alignment = |address: u64| 1u32 << address.trailing_zeros().min(8);
        let shape = Shape {
            m: product.m,
            n: product.n,
            k: product.k,
            leading: [product.lda, product.ldb, product.ldc],
            transpose: [product.transpose_a, product.transpose_b],
            types: [data_type(product.factors), data_type(product.product)],
            alignment: [alignment(product.a), alignment(product.b), alignment(product.c)],
        };
        let mut prepared = self.prepared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let prepared = match prepared.entry(shape) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(self.prepare(&shape)?),
        };
        let Some(algorithm) = prepared.algorithm else { return Ok(false) };
        let (alpha, beta) = (1.0f32, product.beta);
        // SAFETY: descriptors live in the map; α and β are read before the call returns (host pointer mode, the
        // default); the matrices are the caller's promise; C and D may be one in place.
        unsafe {
            result::matmul(
                self.handle,
                prepared.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                product.b as *const c_void,
                prepared.left,
                product.a as *const c_void,
                prepared.right,
                product.c as *const c_void,
                prepared.result,
                product.c as *mut c_void,
                prepared.result,
                &algorithm,
                self.workspace as *mut c_void,
                self.workspace_bytes,
                stream.cast(),
            )?;
        }
        Ok(true)
    }

    fn prepare(&self, shape: &Shape) -> Result<Prepared, CublasError> {
        let layout = |stored: Stored, data_type: sys::cudaDataType| {
            result::create_matrix_layout(data_type, stored.rows as u64, stored.columns as u64, stored.leading as i64)
        };
        let mut prepared = Prepared {
            // Summed in full f32, whatever is stored: no TF32, whatever the device has.
            product: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType::CUDA_R_32F,
            )?,
            left: std::ptr::null_mut(),
            right: std::ptr::null_mut(),
            result: std::ptr::null_mut(),
            algorithm: None,
        };
        let [left, right, product] = shape.in_columns();
        let [factors, stored] = shape.types;
        prepared.left = layout(left, factors)?;
        prepared.right = layout(right, factors)?;
        prepared.result = layout(product, stored)?;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        for (attribute, transposed) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, left.transposed),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, right.transposed),
        ] {
            let operation = i32::from(transposed); // CUBLAS_OP_N = 0, CUBLAS_OP_T = 1
            // SAFETY: the descriptor lives; the attribute is a 32-bit enum.
            unsafe {
                result::set_matmul_desc_attribute(prepared.product, attribute, (&raw const operation).cast(), 4)?
            };
        }
        let preference = Preference(result::create_matmul_pref()?);
        use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
        let workspace = self.workspace_bytes as u64;
        let [align_a, align_b, align_c] = shape.alignment;
        // SAFETY: the preference lives; sizes are 64-bit and alignments 32-bit (cublasLt.h).
        unsafe {
            let set =
                |wish, value: *const c_void, bytes| result::set_matmul_pref_attribute(preference.0, wish, value, bytes);
            set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
            // The library's A is our B.
            set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const align_b).cast(), 4)?;
            set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const align_a).cast(), 4)?;
            set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const align_c).cast(), 4)?;
            set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const align_c).cast(), 4)?;
        }
        // SAFETY: all descriptors live.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                prepared.product,
                prepared.left,
                prepared.right,
                prepared.result,
                prepared.result,
                preference.0,
            )
        };
        match found {
            Ok(found) => prepared.algorithm = Some(found.algo),
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => {}
            Err(error) => return Err(error),
        }
        Ok(prepared)
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: each created once or null, destroyed once; the library is done with them when a call returns.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.left, self.right, self.result] {
                if !layout.is_null() {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.prepared.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
        // SAFETY: created once, destroyed once, after everything made with it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// op(X)(row, column) of a matrix counted in columns, as cuBLAS defines it.
    fn at(data: &[f32], stored: Stored, row: usize, column: usize) -> f32 {
        let (row, column) = if stored.transposed { (column, row) } else { (row, column) };
        assert!(row < stored.rows && column < stored.columns);
        data[row + column * stored.leading]
    }

    #[test]
    fn rows_are_mapped_to_columns() {
        let (m, n, k) = (2, 3, 4);
        for [transpose_a, transpose_b] in [[false, false], [false, true], [true, false], [true, true]] {
            // One more than a row: a leading dimension of its own.
            let lda = 1 + if transpose_a { m } else { k };
            let ldb = 1 + if transpose_b { k } else { n };
            let ldc = n + 2;
            let a: Vec<f32> = (0..40).map(|i| (i * i % 7) as f32).collect();
            let b: Vec<f32> = (0..40).map(|i| (i * i % 11) as f32).collect();
            let types = [Precision::F32; 2].map(data_type);
            let (leading, transpose) = ([lda, ldb, ldc], [transpose_a, transpose_b]);
            let shape = Shape { m, n, k, leading, transpose, types, alignment: [256; 3] };
            let [left, right, result] = shape.in_columns();
            for i in 0..m {
                for j in 0..n {
                    let a_at = |i: usize, p: usize| if transpose_a { a[p * lda + i] } else { a[i * lda + p] };
                    let b_at = |p: usize, j: usize| if transpose_b { b[j * ldb + p] } else { b[p * ldb + j] };
                    let expected: f32 = (0..k).map(|p| a_at(i, p) * b_at(p, j)).sum();
                    // The library's product: left is our B, right our A; (j, i) of the result is our (i, j).
                    let got: f32 = (0..k).map(|p| at(&b, left, j, p) * at(&a, right, p, i)).sum();
                    assert_eq!(got, expected, "{shape:?}");
                    assert_eq!(j + i * result.leading, i * ldc + j);
                    assert!(j < result.rows && i < result.columns);
                }
            }
        }
    }
}
