// The feature map φ of linear attention. Define: FEATURE_MAP (position in FeatureMap::ALL).
#pragma once
#include "prelude.cuh"

__device__ __forceinline__ float feature(float x) {
#if FEATURE_MAP == 0
    return x > 0.f ? x + 1.f : expf(x);
#elif FEATURE_MAP == 1
    return x < 0.f ? 0.f : x;  // NaN stays NaN
#endif
}

// φ′(x) from φ(x).
__device__ __forceinline__ float slope(float feature) {
#if FEATURE_MAP == 0
    return feature > 1.f ? 1.f : feature;
#elif FEATURE_MAP == 1
    return feature > 0.f ? 1.f : 0.f;
#endif
}
