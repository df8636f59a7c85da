package usernet

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// Types and codes of RFC 1035 and RFC 3596.
const (
	dnsPort = 53

	dnsTypeA    = 1
	dnsTypePTR  = 12
	dnsTypeAAAA = 28
	dnsTypeAny  = 255
	dnsClassIN  = 1

	dnsRefused  = 5
	dnsServFail = 2

	dnsHead = 12
)

// question is a query's only question. Other sections may follow, as EDNS does.
type question struct {
	name  string // lower case, without the last dot
	kind  uint16
	class uint16
	end   int // of the question in the message
}

// parseQuery reads the query of a resolver: an opcode of 0 with one question, and
// no compression in its name.
func parseQuery(b []byte) (question, bool) {
	var q question
	if len(b) < dnsHead || b[2]&0xf8 != 0 || binary.BigEndian.Uint16(b[4:]) != 1 || binary.BigEndian.Uint16(b[6:]) != 0 {
		return q, false
	}
	var name [256]byte
	n, at := 0, dnsHead
	for {
		if at >= len(b) {
			return q, false
		}
		l := int(b[at])
		if l == 0 {
			at++
			break
		}
		if l > 63 || at+1+l > len(b) || n+l+1 > 254 {
			return q, false
		}
		if n > 0 {
			name[n] = '.'
			n++
		}
		for _, c := range b[at+1 : at+1+l] {
			if c == '.' { // it would read as two labels
				return q, false
			}
			if c >= 'A' && c <= 'Z' {
				c |= 0x20
			}
			name[n] = c
			n++
		}
		at += 1 + l
	}
	if at+4 > len(b) {
		return q, false
	}
	q.name = string(name[:n])
	q.kind, q.class = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	q.end = at + 4
	return q, true
}

// answers begins the answer to a query: its identifier and question.
func answerTo(query []byte, q question, code byte) []byte {
	b := make([]byte, 0, 512)
	b = append(b, query[:q.end]...)
	b[2] = 0x80 | query[2]&0x01 // response, recursion desired as asked
	b[3] = 0x80 | code          // recursion available
	clear(b[6:dnsHead])
	return b
}

// localTTL is how long, in seconds, the guest may keep what is answered here.
const localTTL = 60

// answerAddrs gives the addresses of the kind that was asked for; none is an
// answer too.
func answerAddrs(query []byte, q question, addrs []netip.Addr) []byte {
	b := answerTo(query, q, 0)
	n := uint16(0)
	for _, a := range addrs {
		kind := uint16(dnsTypeAAAA)
		if a.Is4() {
			kind = dnsTypeA
		}
		if kind != q.kind && q.kind != dnsTypeAny || len(b) > 450 {
			continue
		}
		b = appendRecord(b, kind, a.AsSlice())
		n++
	}
	binary.BigEndian.PutUint16(b[6:], n)
	return b
}

func answerName(query []byte, q question, name string) []byte {
	b := appendRecord(answerTo(query, q, 0), dnsTypePTR, appendName(nil, name))
	binary.BigEndian.PutUint16(b[6:], 1)
	return b
}

func appendRecord(b []byte, kind uint16, data []byte) []byte {
	b = append(b, 0xc0, dnsHead) // the question's name
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, dnsClassIN)
	b = binary.BigEndian.AppendUint32(b, localTTL)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// reverseName is the address that a name below in-addr.arpa or ip6.arpa stands
// for (RFC 1035, 3.5; RFC 3596, 2.5).
func reverseName(name string) (netip.Addr, bool) {
	if digits, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(digits, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	digits, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(digits) != 63 {
		return netip.Addr{}, false
	}
	var a [16]byte
	for i := range 32 {
		c := strings.IndexByte("0123456789abcdef", digits[2*i])
		if c < 0 || i < 31 && digits[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		a[15-i/2] |= byte(c) << (4 * (i % 2))
	}
	return netip.AddrFrom16(a), true
}
