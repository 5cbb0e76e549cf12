/* SPDX-License-Identifier: MIT
 *
 * For tests/cuda on HIP: the names that they use beside those of ggmlq-cuda-deps.cuh.
 */
#pragma once
#include "ggmlq-cuda-deps.cuh"

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
