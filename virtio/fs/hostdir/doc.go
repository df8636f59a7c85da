// Package hostdir shares a directory of the host with a guest: it answers the
// requests of the kernel's FUSE protocol (7.36 and later, as go-fuse's
// [fuse.RawFileSystem] hands them over) from a directory tree. The device in
// virtio/fs carries them; a FUSE mount of this host does as well, which is how
// the tests run real tools over it.
//
// # Trust
//
// The guest is hostile, its kernel included. Whatever it sends, it reaches what
// the user that vole runs as may reach below [Options.Dir], and nothing else:
//
//   - A file is only ever reached from the descriptor of a directory that was
//     itself reached from the share's root, by one name without a slash, or by
//     openat2 with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and
//     RESOLVE_NO_MAGICLINKS. The host never follows a symbolic link: links are
//     text for the guest, and lead nowhere outside of it.
//   - Only regular files and directories are opened, and their kind is looked
//     at before (O_PATH), on the very file that is opened then (/proc/self/fd):
//     a device, FIFO or socket in the tree is never opened, a device never made.
//   - What is mounted below the root belongs to the share. File systems that are
//     really doors to the host's kernel (proc, sysfs, cgroup, debugfs, …) are
//     the exception: each shows as an empty directory, for /proc/N/mem is no
//     file below Dir.
//   - Where writing is not allowed (ReadOnly, outside Writable), every change
//     is EROFS, and no link, rename or second name carries a file across.
//   - Every table has a bound ([Limits]). Node ids and handles are never used
//     twice. A count of FORGET that is too large is cut to what there is.
//
// # Who checks permissions
//
// The guest's kernel, from the modes and owners that it is shown: virtio-fs
// mounts always have default_permissions, and any other mount must be given it.
// vole then acts with its own user's rights. So a process of an honest guest
// gets what its uid gets by those modes (and by POSIX ACLs, with
// [Options.Xattr]), and never more than vole's user may; a dishonest guest gets
// all that vole's user may below Dir. What has to be negotiated is in
// [FS.MountOptions].
//
// If vole is root, new files belong to the caller. Otherwise they belong to
// vole's user, and bits that would lend that user's rights (set-user-ID,
// set-group-ID) are dropped unless the guest sees the caller as the owner. Since
// FUSE_HANDLE_KILLPRIV_V2 leaves it to us, writing to a file, cutting it or
// giving it away clears these bits where the kernel would.
//
// # Descriptors
//
// A node is a device, an inode number, a birth time, and where it was last
// seen: the parent's node and a name. Directories keep an O_PATH descriptor as
// long as they are among the most recently used ones; files have none until they
// are opened. A directory without one is found again by its path from the root
// and must then be the same one, else the request fails with ESTALE, upon which
// the guest's kernel looks the name up anew. This needs no privilege, and
// 100,000 files can be touched with a handful of descriptors. A file that was
// deleted while it was open lives on in the handles; one whose name the guest takes
// away while it is not has a descriptor as directories do, until the guest forgets
// it: a process there may be between looking it up and opening it.
//
// # What is stable
//
// A change is in the host's page cache when its request is answered. FSYNC brings one
// file to the disk, [FS.SyncFS] all that the guest has changed, by syncfs(2) of the mounts
// in which that was: the share does not keep count of files, only of mounts.
//
// # What is left out
//
// DAX windows, ioctl and poll on files, whiteouts (RENAME_WHITEOUT, device 0:0),
// so that a share can't be the upper layer of an overlay (it is a good lower
// one), security labels, notifications of the host's changes (see [CacheMode] and,
// for overlays, [Options.Changed]), and supplementary groups of the caller.
package hostdir
