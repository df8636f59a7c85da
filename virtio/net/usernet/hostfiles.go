package usernet

import (
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// fileCheck is how often a file of the host's is looked at for changes, and
// maxHostFile how much of it is read.
const (
	fileCheck   = 2 * time.Second
	maxHostFile = 4 << 20
)

// hostFile is a small file of the host's, read anew when it has changed.
type hostFile struct {
	path  string
	parse func(lines []string)

	mu      sync.Mutex
	checked time.Time
	was     os.FileInfo
}

// refresh reads the file if it has changed. Without the file, parse gets no
// lines.
func (f *hostFile) refresh() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); f.checked.IsZero() || now.Sub(f.checked) >= fileCheck {
		f.checked = now
	} else {
		return
	}
	info, err := os.Stat(f.path)
	if err == nil && !info.Mode().IsRegular() {
		return
	}
	if err == nil && f.was != nil && os.SameFile(info, f.was) && info.ModTime().Equal(f.was.ModTime()) && info.Size() == f.was.Size() {
		return
	}
	f.was = nil
	var text []byte
	if err == nil {
		if file, err := os.Open(f.path); err == nil {
			text, _ = io.ReadAll(io.LimitReader(file, maxHostFile))
			_ = file.Close()
			f.was = info
		}
	}
	f.parse(strings.Split(string(text), "\n"))
}

// uncommented is a line's words, up to the first character of marks.
func uncommented(line, marks string) []string {
	if i := strings.IndexAny(line, marks); i >= 0 {
		line = line[:i]
	}
	return strings.Fields(line)
}

// parseResolvConf reads resolv.conf(5). Without a server there is the one of this
// host, as the resolvers of libc and Go have it.
func parseResolvConf(lines []string) (servers []netip.AddrPort, search []string) {
	for _, line := range lines {
		words := uncommented(line, "#;")
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil && len(servers) < maxServers {
				servers = append(servers, netip.AddrPortFrom(a, dnsPort))
			}
		case "domain", "search":
			search = nil
			for _, d := range words[1:] {
				if d = strings.TrimSuffix(d, "."); validName(d) && len(search) < maxSearch {
					search = append(search, d)
				}
			}
		}
	}
	if len(servers) == 0 {
		servers = []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort),
			netip.AddrPortFrom(netip.IPv6Loopback(), dnsPort),
		}
	}
	return servers, search
}

// parseHosts reads hosts(5).
func parseHosts(lines []string) map[string][]netip.Addr {
	hosts := map[string][]netip.Addr{}
	for _, line := range lines {
		words := uncommented(line, "#")
		if len(words) < 2 {
			continue
		}
		a, err := netip.ParseAddr(words[0])
		if err != nil || a.Zone() != "" {
			continue
		}
		for _, name := range words[1:] {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			hosts[name] = append(hosts[name], a.Unmap())
		}
	}
	return hosts
}
