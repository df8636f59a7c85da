package hostdir

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrOptions is wrapped by every error of [New] that another value of
	// [Options] would cure.
	ErrOptions = errors.New("can't be shared")
	// ErrHost is wrapped by the errors of [New] that are the host's: a system
	// call that its kernel or a sandbox doesn't have, or no /proc.
	ErrHost = errors.New("this host can't share directories")
)

// CacheMode says how long the guest believes what it has been told.
type CacheMode uint8

const (
	// CacheAuto has names and attributes looked at again after one second. A
	// file that is opened has its old pages dropped unless it is unchanged, so
	// that who opens a file after its last change on the host sees that.
	CacheAuto CacheMode = iota
	// CacheNone keeps nothing: each look is a request, reads and writes go
	// around the guest's page cache (a shared, writable mapping of a file then
	// needs a guest kernel of 6.6 or later).
	CacheNone
	// CacheAlways believes for a day: for directories that nobody else changes.
	CacheAlways
)

// ParseCacheMode understands what String returns; "" is auto.
func ParseCacheMode(s string) (CacheMode, error) {
	switch s {
	case "", "auto":
		return CacheAuto, nil
	case "none":
		return CacheNone, nil
	case "always":
		return CacheAlways, nil
	}
	return 0, fmt.Errorf("hostdir: cache mode %q is none of auto, none and always: %w", s, ErrOptions)
}

func (m CacheMode) String() string {
	switch m {
	case CacheNone:
		return "none"
	case CacheAlways:
		return "always"
	}
	return "auto"
}

// Locks says where flock and POSIX record locks are kept.
type Locks uint8

const (
	// LocksGuest keeps them in the guest's kernel: they are right among the
	// guest's processes, the host does not see them.
	LocksGuest Locks = iota
	// LocksHost makes them locks of the host's files as well, so that the
	// guest and processes of the host exclude each other, and a guest can hold
	// up those of the host. A request that would wait for a lock waits 10
	// seconds at most and then fails with ENOLCK, as does at once one more than
	// may wait (see [Limits]).
	LocksHost
)

// Owner is a user and a group as the guest numbers them.
type Owner struct {
	UID, GID uint32
}

// Limits bound what a guest can make the host keep. Zero values stand for the
// defaults; what the process's RLIMIT_NOFILE can't carry is cut down to it.
type Limits struct {
	// MaxInodes bounds the nodes that the guest has not forgotten, and their
	// parents: 1,048,576 (of some 300 bytes each). With all of them in use a
	// lookup of another file fails with ENFILE.
	MaxInodes int
	// MaxOpen bounds the O_PATH descriptors kept: 1,024. Those of directories are only
	// a cache; a file whose name the guest took away is gone with its own.
	MaxOpen int
	// MaxHandles bounds open files, open directories and owners of record
	// locks together: 65,536. One more fails with ENFILE, and so does one of more
	// than half of RLIMIT_NOFILE in all shares of this process.
	MaxHandles int
	// MaxLockWaits bounds the requests that wait for a lock: 4. It has to be
	// below the number of requests that the device serves at once, or waiting
	// ones keep out those that would unlock. One more fails with ENOLCK.
	MaxLockWaits int

	shared int64 // handles of all shares of this process
}

// Options describe a share.
type Options struct {
	// Dir is the directory to share. Links on the way to it are followed, now
	// and once.
	Dir string
	// ReadOnly refuses every change with EROFS, but for Writable.
	ReadOnly bool
	// Writable are directories below Dir, absolute paths of the host, that may
	// be changed in a share that is otherwise ReadOnly. They must exist. They
	// themselves can't be removed or renamed.
	Writable []string
	// Hidden are paths below Dir, absolute ones of the host, that show as empty
	// directories. What is hidden stays so under other names, and can't be
	// removed or renamed. One that does not exist (yet) is hidden if it appears.
	Hidden []string
	// Cache says how long the guest may believe what it was told.
	Cache CacheMode
	// Owner, if not nil, is whom files of the user and group that vole runs as
	// appear to belong to, and who gives files to that user by chown; so root
	// in the guest owns what vole may change. All other numbers are the same
	// inside and outside.
	Owner *Owner
	// Xattr shares extended attributes: user.*, POSIX ACLs and, for reading,
	// security.capability. All others are not there for the guest: those of
	// trusted.* and security.* have a meaning to the host's kernel (overlays,
	// labels) that they must neither get from a guest nor have in it. Without
	// Xattr there are none at all, which saves a request for many an access.
	Xattr bool
	// Locks says where file locks are kept.
	Locks Locks
	// Changed, if not nil, is for a guest that lays an overlay over the share. It is
	// called, by any goroutine and without locks, when the guest may know names by
	// what they led to before, and should drop its directory entries: a file that it
	// was shown was removed, was replaced while the guest had it open, or has another
	// mode or owner; a name that it looked up in vain is there now. Otherwise a file
	// that the host replaces keeps its node where writing is not allowed, and no time
	// is given for which a name stays absent. It must not block.
	Changed func()
	// Limits bound what a guest can make the host keep.
	Limits Limits
	// Logger is told, rarely, of a guest that breaks the protocol. Nil is silence.
	Logger *slog.Logger
}

const (
	defaultMaxInodes    = 1 << 20
	defaultMaxOpen      = 1024
	defaultMaxHandles   = 1 << 16
	defaultMaxLockWaits = 4
	// minMaxOpen lets a rename hold both directories and a new one, each on a
	// few requests at once.
	minMaxOpen = 32
)

// settle checks l and puts numbers in place of zeroes.
func (l Limits) settle() (Limits, error) {
	for _, v := range []struct {
		name  string
		value *int
		zero  int
	}{
		{"MaxInodes", &l.MaxInodes, defaultMaxInodes},
		{"MaxOpen", &l.MaxOpen, defaultMaxOpen},
		{"MaxHandles", &l.MaxHandles, defaultMaxHandles},
		{"MaxLockWaits", &l.MaxLockWaits, defaultMaxLockWaits},
	} {
		if *v.value < 0 {
			return l, fmt.Errorf("hostdir: Limits.%s is %d, and must be at least 0: %w", v.name, *v.value, ErrOptions)
		}
		if *v.value == 0 {
			*v.value = v.zero
		}
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return l, fmt.Errorf("hostdir: %w: the limit of descriptors can't be read: %w", ErrHost, err)
	}
	files := int(min(r.Cur, 1<<30))
	l.MaxOpen = min(max(l.MaxOpen, minMaxOpen), max(minMaxOpen, files/8))
	l.shared = int64(max(minMaxOpen, files/2))
	return l, nil
}

// below returns path, its links followed, as names below dir. It need not exist
// if mayLack is set: its links are followed as far as it does.
func below(dir, path string, mayLack bool) ([]string, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("hostdir: %q is not an absolute path: %w", path, ErrOptions)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil && mayLack && errors.Is(err, unix.ENOENT) {
		real, err = evalSome(path)
	}
	if err != nil {
		return nil, fmt.Errorf("hostdir: %s: %w: %w", path, ErrOptions, err)
	}
	rest, err := filepath.Rel(dir, real)
	if err != nil || rest == ".." || strings.HasPrefix(rest, "../") {
		return nil, fmt.Errorf("hostdir: %s is not below %s: %w", path, dir, ErrOptions)
	}
	if rest == "." {
		return nil, nil
	}
	return strings.Split(rest, "/"), nil
}

// evalSome follows the links of the part of path that exists.
func evalSome(path string) (string, error) {
	path = filepath.Clean(path)
	rest := ""
	for path != "/" {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(path), rest)
		path = filepath.Dir(path)
	}
	return filepath.Join(path, rest), nil
}
