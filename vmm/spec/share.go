package spec

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// Share is a directory of the host that the guest can mount, in plain data: what stands behind
// --share, and in a JSON file.
type Share struct {
	// Dir is the directory, a relative path from the working directory.
	Dir string `json:"dir"`
	// Tag is what the guest mounts it by.
	Tag      string `json:"tag"`
	ReadOnly bool   `json:"ro,omitempty"`
	// Cache says how long the guest may believe what it was told: "auto", "none" or "always".
	Cache string `json:"cache,omitempty"`
	// Locks says who keeps the locks of files: "guest", or "host", whose own programs see them then. One
	// that is waited for and not free within 10 seconds fails there with ENOLCK.
	Locks string `json:"locks,omitempty"`
	// Xattr lets the guest see and set extended attributes.
	Xattr bool `json:"xattr,omitempty"`
	// Owner, UID:GID, is whom the files of the user that vole runs as belong to in the guest. Without
	// it numbers are the same on both sides.
	Owner string `json:"owner,omitempty"`
	// At is where the guest of a command has it mounted, an absolute path, which is made if it is not
	// there. Any other guest mounts it by itself.
	At string `json:"at,omitempty"`
}

var shareOptions = []option[Share]{
	{"ro", "on", func(s *Share, v string) (err error) { s.ReadOnly, err = onOff(v); return err }},
	{"cache", "", func(s *Share, v string) error { s.Cache = v; return nil }},
	{"locks", "", func(s *Share, v string) error { s.Locks = v; return nil }},
	{"xattr", "on", func(s *Share, v string) (err error) { s.Xattr, err = onOff(v); return err }},
	{"owner", "", func(s *Share, v string) error { s.Owner = v; return nil }},
	{"at", "", func(s *Share, v string) error { s.At = v; return nil }},
}

// ShareUsage is the form that ParseShare reads, for help texts.
const ShareUsage = "DIR:TAG[,ro][,cache=auto|none|always][,locks=guest|host][,xattr][,owner=UID:GID][,at=PATH]"

// ParseShare reads a share in the form of [ShareUsage]. The tag is behind the last colon. A comma in the
// directory's name is written twice.
func ParseShare(s string) (Share, error) {
	words := splitCommas(s)
	colon := strings.LastIndexByte(words[0], ':')
	if colon < 0 {
		return Share{}, fmt.Errorf("%q has no tag for the guest to mount it by: want %s", s, ShareUsage)
	}
	share := Share{Dir: words[0][:colon], Tag: words[0][colon+1:]}
	switch {
	case share.Dir == "":
		return Share{}, fmt.Errorf("%q names no directory: want %s", s, ShareUsage)
	case share.Tag == "":
		return Share{}, fmt.Errorf("%q has an empty tag: want %s", s, ShareUsage)
	}
	err := parseOptions(s, words[1:], shareOptions, &share, "a share: want "+ShareUsage+" (a comma in a directory's name is written twice)")
	if err != nil {
		return Share{}, err
	}
	return share, nil
}

// shareQueues bounds the request queues of a share; each has workers of its own.
const shareQueues = 4

// options checks every value of a share and turns it into what packages hostdir and fs take.
func (s Share) options(cpus int) (hostdir.Options, fs.Options, error) {
	dir := hostdir.Options{Dir: s.Dir, ReadOnly: s.ReadOnly, Xattr: s.Xattr}
	dir.Limits.MaxLockWaits = fs.MaxBlocked // they are apart from the device's workers
	dev := fs.Options{Tag: s.Tag, Queues: min(max(cpus, 1), shareQueues)}
	fail := func(format string, args ...any) (hostdir.Options, fs.Options, error) {
		return dir, dev, fmt.Errorf("%s: %w", s.Dir, fmt.Errorf(format, args...))
	}
	switch {
	case s.Dir == "":
		return dir, dev, errors.New("it names no directory")
	case strings.IndexByte(s.Dir, 0) >= 0:
		return dir, dev, fmt.Errorf("%q: a name of a directory has no NUL", s.Dir)
	}
	if err := fs.CheckTag(s.Tag); err != nil {
		return fail("%w", err)
	}
	if s.At != "" && (!path.IsAbs(s.At) || path.Clean(s.At) == "/") {
		return fail("at: %q is not an absolute path below the root", s.At)
	}
	var err error
	if dir.Cache, err = nameOf(s.Cache, hostdir.CacheAuto, hostdir.CacheNone, hostdir.CacheAlways); err != nil {
		return fail("cache: %w", err)
	}
	switch s.Locks {
	case "", "guest":
	case "host":
		dir.Locks = hostdir.LocksHost
	default:
		return fail("locks: %q is neither guest nor host", s.Locks)
	}
	if s.Owner != "" {
		uid, gid, _ := strings.Cut(s.Owner, ":")
		u, okU := digits(uid)
		g, okG := digits(gid)
		const most = 1<<32 - 2 // the last one is nobody at all
		if !okU || !okG || u > most || g > most {
			return fail("owner: %q is not a user's and a group's number: want UID:GID", s.Owner)
		}
		dir.Owner = &hostdir.Owner{UID: uint32(u), GID: uint32(g)}
	}
	return dir, dev, nil
}

// nameOf finds the value that s names; no name is the first.
func nameOf[T fmt.Stringer](s string, values ...T) (T, error) {
	if s == "" {
		return values[0], nil
	}
	var names []string
	for _, v := range values {
		if v.String() == s {
			return v, nil
		}
		names = append(names, v.String())
	}
	return values[0], fmt.Errorf("%q is not one of %s", s, strings.Join(names, ", "))
}

// checkShares checks all shares of a machine, but not what is on the host.
func checkShares(shares []Share) error {
	tags := map[string]bool{}
	for _, s := range shares {
		if _, _, err := s.options(1); err != nil {
			return err
		}
		if tags[s.Tag] {
			return fmt.Errorf("%s: two shares have the tag %q", s.Dir, s.Tag)
		}
		tags[s.Tag] = true
	}
	return nil
}

// shares opens the shares.
func (m Machine) shares(cpus int, log *slog.Logger) (list []virtio.Device, err error) {
	defer func() {
		if err != nil {
			closeAll(list)
		}
	}()
	for _, s := range m.Shares {
		dir, opts, err := s.options(cpus)
		if err != nil {
			return list, &FieldError{"share", err}
		}
		dir.Logger, opts.Logger = log, log
		tree, err := hostdir.New(dir)
		switch {
		case errors.Is(err, hostdir.ErrHost):
			return list, err
		case err != nil:
			return list, &FieldError{"share", err}
		}
		dev, err := fs.New(tree, opts)
		if err != nil {
			return list, &FieldError{"share", err}
		}
		list = append(list, dev)
	}
	return list, nil
}
