// Package initramfs writes and reads the archives that a Linux kernel unpacks
// into its root file system before it starts /init, and finds the kernel
// modules that such an archive has to carry.
//
// The format is cpio "newc" (magic 070701) as the kernel reads it:
// Documentation/driver-api/early-userspace/buffer-format.rst and
// init/initramfs.c in the kernel's tree.
//
// An [Archive] is a list of entries. [Archive.Image] turns it into an [Image]:
// a rope whose headers are in memory and whose file bodies stay where they
// are, so that a boot loader reads a file of any size straight into guest
// memory. The bytes of an image depend on its entries alone: times are zero and
// inode numbers count up, so equal input gives equal output.
//
// A [Reader] walks over an archive, for listings and tests. It bounds
// everything that it keeps in memory, whatever the archive says.
//
// [OpenModules] and [ModuleDir.Select] work out which files of a modules
// directory a set of modules needs and in which order they load, whether or
// not depmod ever ran there, and [Archive.AddModules] packs them decompressed.
//
// The package does not compress archives, write hard links, carry times,
// extended attributes or checksums (070702), or extract to disk.
package initramfs
