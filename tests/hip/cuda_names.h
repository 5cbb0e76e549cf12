/* SPDX-License-Identifier: MIT
 *
 * CUDA's names in tests/cuda that the kernels don't use: what ROCm and the emulator call it.
 */
#pragma once

#define cudaDeviceSynchronize           hipDeviceSynchronize
#define cudaEventCreate                 hipEventCreate
#define cudaEventDestroy                hipEventDestroy
#define cudaEventElapsedTime            hipEventElapsedTime
#define cudaEventRecord                 hipEventRecord
#define cudaEventSynchronize            hipEventSynchronize
#define cudaEvent_t                     hipEvent_t
#define cudaGraphDestroy                hipGraphDestroy
#define cudaGraphExecDestroy            hipGraphExecDestroy
#define cudaGraphExec_t                 hipGraphExec_t
#define cudaGraphInstantiate(exec, graph, flags) hipGraphInstantiate(exec, graph, NULL, NULL, flags)
#define cudaGraphLaunch                 hipGraphLaunch
#define cudaGraph_t                     hipGraph_t
#define cudaMemcpy                      hipMemcpy
#define cudaMemcpyDeviceToDevice        hipMemcpyDeviceToDevice
#define cudaMemset                      hipMemset
#define cudaStreamBeginCapture          hipStreamBeginCapture
#define cudaStreamCaptureModeThreadLocal hipStreamCaptureModeThreadLocal
#define cudaStreamCreate                hipStreamCreate
#define cudaStreamDestroy               hipStreamDestroy
#define cudaStreamEndCapture            hipStreamEndCapture
