// Package net is the virtio network device, and a TAP interface as the host's end
// of it. It holds no network stack: a [Backend] is whatever takes and gives
// Ethernet frames, and package usernet beside this one is another.
//
// # Frames
//
// A frame goes from guest memory to the backend, and from it, in one piece of
// work: the buffers that the driver has made available are what the backend reads
// from and writes to, with one system call for a frame where the backend is a
// [Tap]. Nothing is copied but the header of a sent frame, which is checked before
// a backend sees it, and the end of a received one that is longer than those before
// it. Nothing is allocated and no lock is contended for a frame.
//
// A receiving goroutine keeps no buffers of the driver while it waits for a frame,
// so that the device can be paused at any time. When the driver has no buffers left
// it waits for these, and the frames stay with the backend.
//
// # In the host's kernel
//
// A [VHost] is a tap of which the host's kernel moves the frames: it is lent the
// driver's queues, but for the control queue, and this process sees no frame. What this
// package does for each frame it then can't do: limits are refused, the filters are not
// offered, and the kernel's own checks are what there is.
//
// # Trust
//
// The driver's header of a frame is copied once and then made to say nothing that
// the frame does not bear out; a frame with one that can't be, or that asks for
// what was not negotiated, is dropped and counted. So is what does not fit into the
// driver's buffers. Nothing that a driver does breaks more than its own network.
//
// # Left out
//
// Receive-side scaling and hash reports, VLAN filters, the extra receive modes,
// notification coalescing, guest offloads that change while the device runs,
// UDP fragmentation, and standby devices.
//
// The device follows VIRTIO 1.2, section 5.1 (Network Device).
package net
