// Package posix tests a file system from inside: what POSIX promises, by the tests of
// go-fuse's posixtest, and that reads, writes, maps and cuts of one file, in any order,
// give what was put there. Package guests runs it on a share in a guest.
//
//	VOLE_POSIX_DIR    the directory that is tested; a temporary one when it is not set
//	VOLE_POSIX_SEED   of the order of reads and writes; a new one when it is not set
//	VOLE_POSIX_SHARE  the tag of a share whose options are tested
package posix
