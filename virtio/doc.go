// Package virtio is the part of a virtio device that all types and both
// transports share: the split queue, the chains that come through it, the
// status machine with feature negotiation, and the [Device] interface that a
// type implements.
//
// # Who does what
//
// A transport (virtio/mmio, virtio/pci) is a register block. It translates the
// driver's accesses into calls of a [Function], which keeps the registers that
// do not depend on the transport: status, features, queue addresses. When the
// driver says DRIVER_OK the Function checks what was set up, copies it into
// [Queue] values that nothing the driver writes later can change, and hands
// them to the Device. The Device's goroutines wait for the queue's doorbell,
// pop chains, work, and push them back.
//
// # Trust
//
// The driver is not trusted. Everything that stands in guest memory is copied
// once, checked, and only then used; a queue that breaks the rules is shut,
// the device says DEVICE_NEEDS_RESET, once, and lives on. No number from the
// guest sizes an allocation.
//
// Left out: packed queues, legacy and transitional devices, queue reset,
// notification data and shared memory regions. In-order completion would save
// the driver nothing with queues of this size.
//
// Source: Virtual I/O Device (VIRTIO) Version 1.2, sections 2, 3 and 6. Numbers
// of rules in comments ("rule 12") are those of the project's list of rules.
package virtio
