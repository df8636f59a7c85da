package vmtest

import (
	"os"
	"syscall"
)

// isNull says whether nothing comes of a file.
func isNull(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return true // closed
	}
	null, err := os.Stat(os.DevNull)
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	a, ok := info.Sys().(*syscall.Stat_t)
	b, also := null.Sys().(*syscall.Stat_t)
	return ok && also && a.Rdev == b.Rdev
}
