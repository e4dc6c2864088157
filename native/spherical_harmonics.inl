// Real spherical harmonics up to degree 3 in 3DGS' order and signs, and their derivatives.

// The basis functions above degree 0 at the unit direction (x, y, z).
inline int sh_basis(int degree, Vec x, Vec y, Vec z, Vec* basis) {
    if (degree < 1) return 0;
    basis[0] = Vec(-kSh1) * y;
    basis[1] = Vec(kSh1) * z;
    basis[2] = Vec(-kSh1) * x;
    if (degree < 2) return 3;
    const Vec xx = x * x, yy = y * y, zz = z * z;
    basis[3] = Vec(kSh2[0]) * x * y;
    basis[4] = Vec(kSh2[1]) * y * z;
    basis[5] = Vec(kSh2[2]) * (Vec(2.0f) * zz - xx - yy);
    basis[6] = Vec(kSh2[3]) * x * z;
    basis[7] = Vec(kSh2[4]) * (xx - yy);
    if (degree < 3) return 8;
    basis[8] = Vec(kSh3[0]) * y * (Vec(3.0f) * xx - yy);
    basis[9] = Vec(kSh3[1]) * x * y * z;
    basis[10] = Vec(kSh3[2]) * y * (Vec(4.0f) * zz - xx - yy);
    basis[11] = Vec(kSh3[3]) * z * (Vec(2.0f) * zz - Vec(3.0f) * xx - Vec(3.0f) * yy);
    basis[12] = Vec(kSh3[4]) * x * (Vec(4.0f) * zz - xx - yy);
    basis[13] = Vec(kSh3[5]) * z * (xx - yy);
    basis[14] = Vec(kSh3[6]) * x * (xx - Vec(3.0f) * yy);
    return 15;
}

// Σ_k factor_k ∂basis_k/∂(x, y, z), the three coordinates taken as independent.
inline void sh_direction_gradient(int degree, Vec x, Vec y, Vec z, const Vec* factor, Vec* out) {
    out[0] = out[1] = out[2] = Vec(0.0f);
    if (degree < 1) return;
    out[0] = Vec(-kSh1) * factor[2];
    out[1] = Vec(-kSh1) * factor[0];
    out[2] = Vec(kSh1) * factor[1];
    if (degree < 2) return;
    const Vec f3 = Vec(kSh2[0]) * factor[3], f4 = Vec(kSh2[1]) * factor[4], f5 = Vec(2.0f * kSh2[2]) * factor[5],
              f6 = Vec(kSh2[3]) * factor[6], f7 = Vec(2.0f * kSh2[4]) * factor[7];
    out[0] += f3 * y + f6 * z + (f7 - f5) * x;
    out[1] += f3 * x + f4 * z - (f5 + f7) * y;
    out[2] += f4 * y + f6 * x + Vec(2.0f) * f5 * z;
    if (degree < 3) return;
    const Vec xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
    const Vec g0 = Vec(kSh3[0]) * factor[8], g1 = Vec(kSh3[1]) * factor[9], g2 = Vec(kSh3[2]) * factor[10],
              g3 = Vec(kSh3[3]) * factor[11], g4 = Vec(kSh3[4]) * factor[12], g5 = Vec(kSh3[5]) * factor[13],
              g6 = Vec(kSh3[6]) * factor[14];
    const Vec two(2.0f), three(3.0f), four(4.0f), six(6.0f), eight(8.0f);
    out[0] += g0 * six * xy + g1 * yz - g2 * two * xy - g3 * six * xz + g4 * (four * zz - three * xx - yy) +
              g5 * two * xz + g6 * three * (xx - yy);
    out[1] += g0 * three * (xx - yy) + g1 * xz + g2 * (four * zz - xx - three * yy) - g3 * six * yz -
              g4 * two * xy - g5 * two * yz - g6 * six * xy;
    out[2] += g1 * xy + g2 * eight * yz + g3 * (six * zz - three * xx - three * yy) + g4 * eight * xz +
              g5 * (xx - yy);
}
