package agent

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const resolvConf = "/etc/resolv.conf"

// maxResolver bounds what is kept of the resolver's configuration, in bytes.
const maxResolver = 64 << 10

// rescued is what the new /run has of the old. The host's is not shown: its sockets
// lead nowhere, and its files speak of services that don't run here.
type rescued struct {
	resolver string // where /etc/resolv.conf leads, if that is below /run
	text     string
	links    [][2]string // target and name
}

// rescue looks for what must stay. It is called before /run is mounted.
func rescue() rescued {
	var r rescued
	buf := make([]byte, unix.PathMax)
	link := func(name string) string {
		n, err := unix.Readlink(name, buf)
		if err != nil {
			return ""
		}
		return string(buf[:n])
	}
	if target := link(resolvConf); target != "" {
		if !path.IsAbs(target) {
			target = path.Join("/etc", target)
		}
		if target = path.Clean(target); strings.HasPrefix(target, "/run/") {
			r.resolver = target
			r.text, _ = readFile(target, maxResolver)
		}
	}
	// NixOS has all of its programs behind such a link.
	const current = "/run/current-system"
	if link(current) != "" {
		entries, _ := os.ReadDir("/run")
		for _, e := range entries {
			name := "/run/" + e.Name()
			if target := link(name); target != "" {
				r.links = append(r.links, [2]string{target, name})
			}
		}
	}
	return r
}

// restore puts into the new /run what was rescued.
func (r *rescued) restore(s *shares, p *problems) {
	if r.resolver != "" && r.text != "" && !s.have(r.resolver) {
		p.check(writeNew(r.resolver, r.text), "keep %s", r.resolver)
	}
	for _, l := range r.links {
		if err := unix.Symlink(l[0], l[1]); err != unix.EEXIST {
			p.check(err, "keep %s", l[1])
		}
	}
}

// setResolver names DNS servers. The host's file is not written to: if it is a link
// into the guest's /run, its target is, otherwise a file in memory is mounted over it.
func (s *shares) setResolver(servers []string, target string) error {
	var b strings.Builder
	for _, name := range servers {
		b.WriteString("nameserver " + name + "\n")
	}
	if target != "" && !s.have(target) {
		return writeNew(target, b.String())
	}
	file := "/run/vole/resolv.conf"
	if s.have(file) {
		file = "/dev/.vole/resolv.conf"
	}
	if err := writeNew(file, b.String()); err != nil {
		return err
	}
	err := unix.Mount(file, resolvConf, "", unix.MS_BIND, "")
	if err != unix.ENOENT {
		return err
	}
	if s.have(resolvConf) {
		return errors.New("it is missing, and is not made in a directory of the host's that is writable")
	}
	_ = unix.Unlink(resolvConf) // a link that leads nowhere
	return writeNew(resolvConf, b.String())
}

// writeNew writes a file anew, and makes its directory.
func writeNew(name, text string) error {
	if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o644)
}
