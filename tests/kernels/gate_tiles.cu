// A loop that the kernel gate's tests count: products on tensor cores of two kinds, ldmatrix, an asynchronous copy.
extern "C" __global__ void tiles(float* out, const float* in, int n) {
  __shared__ __align__(16) unsigned short s[4096];
  float d[4]={}; 
  unsigned addr=(unsigned)__cvta_generic_to_shared(s)+threadIdx.x%32*16;
  for (int i=0;i<n;++i){
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"::"r"(addr),"l"(in+i*128+threadIdx.x*4):"memory");
    asm volatile("cp.async.commit_group;\n cp.async.wait_group 0;":::"memory");
    __syncthreads();
    unsigned a[4],b[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];":"=r"(a[0]),"=r"(a[1]),"=r"(a[2]),"=r"(a[3]):"r"(addr));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];":"=r"(b[0]),"=r"(b[1]):"r"(addr+2048));
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};":"+f"(d[0]),"+f"(d[1]),"+f"(d[2]),"+f"(d[3]):"r"(a[0]),"r"(a[1]),"r"(a[2]),"r"(a[3]),"r"(b[0]),"r"(b[1]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};":"+f"(d[0]),"+f"(d[1]),"+f"(d[2]),"+f"(d[3]):"r"(a[0]),"r"(a[1]),"r"(a[2]),"r"(a[3]),"r"(b[0]),"r"(b[1]));
    asm volatile("ex2.approx.ftz.f32 %0,%0;":"+f"(d[0]));
    d[1]=d[1]*d[0]+d[2]; d[3]+=d[0];
    __syncthreads();
  }
  for(int i=0;i<4;++i) out[threadIdx.x*4+i]=d[i];
}
