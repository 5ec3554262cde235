//! Vectorised exp and tanh for f32.

/// x ← eˣ.
pub fn exp_in_place(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.exp());
}

/// x ← tanh x.
pub fn tanh_in_place(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.tanh());
}
