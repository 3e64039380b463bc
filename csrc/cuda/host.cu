// The host's memory as the device reaches it, and copies from there.
#include <cstring>

#include "device.cuh"
#include "krasis_cuda.h"

#ifdef __CUDACC__

namespace {

int status(cudaError_t error) {
    if (error == cudaSuccess)
        return KRASIS_OK;
    // Else the next call that asks would be told of it.
    cudaGetLastError();
    return error == cudaErrorMemoryAllocation ? KRASIS_ERROR_MEMORY : KRASIS_ERROR_DEVICE;
}

} // namespace

extern "C" int krasis_cuda_register(const void *host, int64_t bytes, int read_only, void **device, void *) {
    if (!host || !device)
        return KRASIS_ERROR_NULL;
    const unsigned flags = cudaHostRegisterPortable | cudaHostRegisterMapped | (read_only ? cudaHostRegisterReadOnly : 0);
    const cudaError_t error = cudaHostRegister(const_cast<void *>(host), bytes, flags);
    if (error != cudaSuccess)
        return status(error);
    return status(cudaHostGetDevicePointer(device, const_cast<void *>(host), 0));
}

extern "C" int krasis_cuda_unregister(const void *host, void *) {
    return status(cudaHostUnregister(const_cast<void *>(host)));
}

extern "C" int krasis_cuda_copy(void *to, const void *from, int64_t bytes, void *stream) {
    return status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream));
}

#else

extern "C" int krasis_cuda_register(const void *host, int64_t, int, void **device, void *) {
    if (!host || !device)
        return KRASIS_ERROR_NULL;
    *device = const_cast<void *>(host);
    return KRASIS_OK;
}

extern "C" int krasis_cuda_unregister(const void *, void *) { return KRASIS_OK; }

extern "C" int krasis_cuda_copy(void *to, const void *from, int64_t bytes, void *) {
    std::memcpy(to, from, bytes);
    return KRASIS_OK;
}

#endif
