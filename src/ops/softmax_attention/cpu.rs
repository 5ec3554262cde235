//! stub
use crate::cpu::{Mut, Real, Ref};
use crate::op::{Gradient, Mode};
use crate::ops::attention::Sizes;
#[allow(missing_docs)]
pub struct Problem<'a> {
    pub sizes: Sizes,
    pub scale: f64,
    pub lengths: Option<&'a [i32]>,
}
#[allow(missing_docs)]
pub fn forward<R: Real>(_p: &Problem, _q: Ref<R>, _k: Ref<R>, _v: Ref<R>, _out: &Mut<R>, _lse: &mut [R], _mode: Mode) {}
#[allow(missing_docs, clippy::too_many_arguments)]
pub fn backward<R: Real>(
    _p: &Problem,
    _q: Ref<R>,
    _k: Ref<R>,
    _v: Ref<R>,
    _out: Ref<R>,
    _lse: &[R],
    _d_out: Option<Ref<R>>,
    _d_lse: Option<&[R]>,
    _dq: Option<Gradient<Mut<R>>>,
    _dk: Option<Gradient<Mut<R>>>,
    _dv: Option<Gradient<Mut<R>>>,
    _mode: Mode,
) {
}
