package harness

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// Caller is the user of this process, with its groups.
func Caller() (*remote.User, error) {
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

// Umask is that of this process. The system call for it would change it for a moment.
func Umask() uint32 {
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

// SameFile says whether two files are one, as after 2>&1. What is written to both keeps
// its order only if a command has one stream for them.
func SameFile(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}

// OwnerFor is the Root.Owner with which a command of a user may do to the files of an
// ordinary user, who runs vole, what an owner may: give them to itself, and be taken for
// their owner by programs that ask (git does). nil is for who needs none: for vole's own
// user, and where vole is root and may do to files what any user may.
func OwnerFor(u *remote.User) *hostdir.Owner {
	if u == nil {
		u = &remote.User{} // root
	}
	if uid := os.Geteuid(); uid == 0 || uint32(uid) == u.UID {
		return nil
	}
	return &hostdir.Owner{UID: u.UID, GID: u.GID}
}

// UserNet is the guest's address on a network of package virtio/net/usernet, for
// Options.Net: DHCP would give it the same, later.
func UserNet() *wire.Net {
	return &wire.Net{Addresses: []string{"10.0.2.15/24"}, Gateways: []string{"10.0.2.2"}, DNS: []string{"10.0.2.3"}}
}
