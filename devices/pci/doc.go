// Package pci is the PCI side of the machine: a host bridge with one root bus, the two ways into configuration space, the
// base address registers of the functions on the bus, and MSI-X.
//
// A [Function] is built by the device that it carries: identity, capabilities, BARs, MSI-X. [Host.Plug] then gives it a
// device number and places its BARs in the windows of the bridge, so that a guest finds everything assigned and has
// nothing left to write but the command register. A guest may move the BARs all the same; the handler of a BAR is on the
// memory bus exactly while memory decoding is on and the BAR lies wholly inside a window, over nothing else.
//
// The MSI-X table and the pending bits lie in a BAR that the function already has, next to whatever else its owner keeps
// there: [Function.AddMSIX] takes these two ranges of the BAR for itself, and the owner's handler sees the rest. A BAR for
// MSI-X alone is one without a handler.
//
// Nothing here knows KVM or virtio. Interrupts leave through [Vector], addresses through [Bus].
//
// Locks. Configuration accesses of one host take one lock. Handlers of BARs and of active capabilities are called without
// it; only [Function.OnMap] is called with it. MSI-X has a lock for each function, taken alone or after the host's, never
// before it, and held while vectors are programmed.
//
// Left out on purpose: bridges and further buses, functions 1 to 7, I/O space and expansion ROM, interrupt pins, MSI,
// extended capabilities (they read as 0: there are none), hot plug, power management, and the effect of the bus master
// bit, which is kept but stops nothing.
//
// Sources: PCI Local Bus Specification 3.0, sections 3.2.2.3.2 (configuration mechanism 1), 6.1 to 6.2.5 (header and
// BARs), 6.7 (capability list) and 6.8.2 (MSI-X); PCI Express Base Specification 3.1, section 7.2.2 (ECAM); PCI Firmware
// Specification 3.2, section 4.1.
package pci
