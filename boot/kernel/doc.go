// Package kernel finds the Linux kernels of a machine, takes the vmlinux out
// of a bzImage, and keeps what it took out in a cache.
//
// A bzImage is a small loader with a compressed vmlinux in it. Booted as it
// is, the guest unpacks and relocates that vmlinux on its own vCPU, through
// pages that the host must fault in one by one. [Extract] does the unpacking
// on the host, and [Cache] does it once per kernel, so that later boots load
// an ELF file straight into guest memory. What is lost is the guest's KASLR,
// which the loader in the bzImage does; a caller that wants it boots the
// bzImage.
//
// A cached vmlinux is laid out for loading: it has the program headers and the
// PVH note of the original and the same bytes at the same physical addresses,
// but runs of zero pages, the section table and the relocations behind the ELF
// (only the loader in the bzImage uses those) are not in the file. Guest RAM is
// zero before it is written, so what is left out need never be touched.
//
// [Find] lists the kernels that are installed, [Default] picks the one that
// "vole run" boots when it is given none, and [ModulesFor] finds the modules of
// any kernel file.
//
// The package fetches nothing from a network and writes nothing to guest
// memory. Specifications: the Linux/x86 boot protocol
// (Documentation/arch/x86/boot.rst in Linux), ELF-64, the file formats of lzop
// and of LZ4's legacy frame.
package kernel
