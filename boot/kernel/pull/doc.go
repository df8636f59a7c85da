// Package pull fetches Linux kernels and their modules: Debian's through apt,
// those in .deb files and in OCI images, and those in directories and kernel
// build trees.
//
// [Parse] turns names, as a user writes them, into sources, and [Pull] brings
// what a source has into the directory of pulled kernels, where kernel.Find and
// kernel.ModulesFor see it:
//
//	6.12.9/vmlinuz            the bzImage
//	6.12.9/lib/modules/6.12.9 its modules, with the indexes that depmod makes
//	6.12.9/config             its configuration, if the source has it
//	6.12.9/kernel.json        a [Record]: where it is from, versions, checksums
//	.work/                    what is being fetched
//
// A kernel is made under .work and renamed, whole and on disk, to its final
// name. What was downloaded when a pull ended early is kept for the next pull
// of the same source if it can be told then that it is still the same: by a
// digest that is known beforehand or an entity tag of the server; apt sees to
// its own. Everything else vanishes. Directories under .work are locked by whoever uses
// them; those of processes that are gone are cleared away by the next.
//
// Nothing is installed, no script of a package runs, and nothing but vmlinuz,
// the configuration and regular files below lib/modules is unpacked, within
// limits of size and number and, by os.Root, below the directory that is theirs.
// What apt fetches is verified by apt with the host's keys; an OCI image by the
// digests that its manifest has, the manifest itself by TLS unless the name has
// its digest; a .deb from the network by TLS, or the SHA-256 in its URL.
//
// The OCI client speaks what it takes to pull (OCI Distribution Specification
// 1.1, "Pull"; OCI Image Specification 1.1) over net/http itself: a library for
// all of it (go-containerregistry) would start every process of vole with the
// compilation of the regular expressions in it and what it links (0.3 ms, 117 KB
// of heap), and can't resume a blob.
//
// The package does not install kernels, build them, or check signatures of OCI
// images. Formats: deb(5), ar(5), POSIX tar and pax.
package pull
