// Package acpi writes the ACPI tables of a vole machine, and the AML in them.
//
// [Build] turns a [Machine] into one run of bytes to be placed at a given
// guest-physical address: RSDP, XSDT, FADT, MADT, MCFG (with PCI) and DSDT. It
// knows nothing of guest memory, of KVM or of the devices it describes: the
// caller says where they are. The same Machine always gives the same bytes.
//
// The machine is hardware-reduced (ACPI 6.3, section 4.1): there is no SCI, no
// PM1 block, no PM timer, no GPE, no FACS and no 8259 or PIT that the guest
// would use. Power is switched through the sleep control and status registers
// and the reset register of the FADT, and the power button is an event of a
// generic event device (ACPI0013).
//
// Interrupts are Interrupt() descriptors, never IRQ(). Under Linux a
// hardware-reduced machine has no ISA interrupts (nr_legacy_irqs is 0), so that
// an ISA number means nothing there, while an Interrupt() descriptor is a GSI
// whose trigger and polarity are taken as written. All are edge-triggered,
// active high, exclusive.
//
// Left out on purpose: FACS and the fixed registers (hardware-reduced), HPET
// (not in the machine), SPCR (it would pick a console behind the command line's
// back), SRAT and SLIT (one node), \_PIC (Linux does without), _PRT (no INTx:
// a PCI function's interrupt pin register must read 0), _CCA (x86 is coherent
// without it), and hot plug.
//
// Sources: Advanced Configuration and Power Interface Specification 6.3 (tables:
// section 5.2, AML: section 20, resource descriptors: section 6.4), PCI Firmware
// Specification 3.2 (MCFG: section 4.1.2, _OSC: section 4.5).
package acpi
