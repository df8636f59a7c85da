// Package pci is the virtio transport over PCI (VIRTIO 1.2, section 4.1): a
// modern device, with everything in one 64-bit BAR and its interrupts by MSI-X
// alone. Each queue has a notification address of its own, so that an ioeventfd
// needs no look at the data.
//
// It leaves out transitional devices, INTx, queue reset, notification data and
// shared memory.
package pci
