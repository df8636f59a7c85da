// Package boot places a Linux kernel, its initrd, its command line and the
// tables that describe the machine into guest memory, and says in which state
// a CPU must enter the kernel.
//
// It follows three protocols:
//
//   - bzImage by the 64-bit boot protocol of Linux's
//     Documentation/arch/x86/boot.rst: the kernel unpacks itself.
//   - ELF vmlinux by the PVH entry, where the file carries the note
//     XEN_ELFNOTE_PHYS32_ENTRY; the structures are those of Linux's
//     include/xen/interface/hvm/start_info.h.
//   - ELF vmlinux by its 64-bit entry (startup_64), which takes a zero page
//     like the bzImage's, where there is no such note or [Params.ForceELF64]
//     asks for it.
//
// [Check] finds everything that is wrong with kernel, initrd and command line
// before a machine exists; [Load] finds the same and then writes. Neither
// trusts a byte of the files: every size and offset is checked, and nothing is
// written outside the boot structures, the kernel and the initrd. The package
// decompresses nothing (boot/kernel does), writes no ACPI table (boot/acpi
// does) and knows nothing of KVM.
package boot
