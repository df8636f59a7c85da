package vmtest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/vole-vmm/vole/guest/remote"
)

// thisUser is the user of this process.
func thisUser() (*remote.User, error) {
	u := &remote.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	groups, err := os.Getgroups()
	if err != nil {
		return nil, fmt.Errorf("the groups of this user: %w", err)
	}
	for _, g := range groups {
		u.Groups = append(u.Groups, uint32(g))
	}
	return u, nil
}

// umask is this process's. The system call for it would change it for a moment.
func umask() uint32 {
	const usual = 0o022
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return usual
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "Umask:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(text), 8, 32); err == nil {
				return uint32(n)
			}
		}
	}
	return usual
}

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

// sameFile says whether two descriptors are of one file.
func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}
