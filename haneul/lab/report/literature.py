"""What others published about the cost of virtualization. It stands beside what was measured here, and is never mixed with it.

`verified` figures were read in the source that is named; the others are recalled, and have to be looked up before they are quoted.
"""

from __future__ import annotations

from dataclasses import dataclass

from haneul.lab.report.texts import Text


@dataclass(frozen=True)
class Published:
    about: Text
    figure: Text
    source: str
    verified: bool


PUBLISHED: tuple[Published, ...] = (
    Published(
        Text("Everything in software (full emulation)", "전부 소프트웨어로 처리(완전 에뮬레이션)"),
        Text("2 to 10 times slower, “or worse”", "2~10배 느림, “또는 그 이상”"),
        "B. Gregg, “AWS EC2 Virtualization 2017” (brendangregg.com)",
        True,
    ),
    Published(
        Text("Paravirtual", "반가상화"),
        Text("10 % to 50 % overhead", "오버헤드 10~50%"),
        "B. Gregg, “AWS EC2 Virtualization 2017” (brendangregg.com)",
        True,
    ),
    Published(
        Text("By hardware (HVM)", "하드웨어 가상화(HVM)"),
        Text("0.1 % to 1.5 % overhead", "오버헤드 0.1~1.5%"),
        "B. Gregg, “AWS EC2 Virtualization 2017” (brendangregg.com)",
        True,
    ),
    Published(
        Text("Building Linux on Xen (paravirtual)", "Xen(반가상화)에서 리눅스 커널 빌드"),
        Text("3 % overhead", "오버헤드 3%"),
        "Barham et al., “Xen and the Art of Virtualization”, SOSP 2003, section 4",
        True,
    ),
    Published(
        Text("SPEC CPU on any monitor of 2003", "2003년의 모든 VMM에서 SPEC CPU"),
        Text("low overhead: it stays in user space", "오버헤드가 작음: 사용자 공간에서만 실행되기 때문"),
        "Barham et al., SOSP 2003, section 4",
        True,
    ),
    Published(
        Text("SPEC WEB99: User-mode Linux and VMware of 2003", "SPEC WEB99: 2003년의 User-mode Linux와 VMware"),
        Text("less than a third of the clients of a native server; Xen within 1 %",
             "물리 서버가 처리하는 클라이언트 수의 3분의 1 미만, Xen은 1% 이내"),
        "Barham et al., SOSP 2003, section 4",
        True,
    ),
    Published(
        Text("The first CPUs with help for virtualization", "가상화 지원 기능이 처음 들어간 CPU"),
        Text("often slower than a software monitor: nothing helped the MMU",
             "MMU 지원이 없어 소프트웨어 VMM보다 느린 경우가 많았음"),
        "Adams & Agesen, ASPLOS 2006, abstract",
        True,
    ),
    Published(
        Text("KVM nested on an Apple M3", "애플 M3에서 중첩된 KVM"),
        Text("“seems even slower than TCG”", "“TCG보다도 느려 보인다”"),
        "lima-vm/lima #3031",
        True,
    ),
    Published(
        Text("lmbench of 2003, User-mode Linux against native", "2003년 lmbench, User-mode Linux와 물리 서버 비교"),
        Text("null call 24.7 µs to 0.45 µs (55 times), fork 21 ms to 0.11 ms, exec 33 ms to 0.53 ms",
             "빈 시스템 호출 24.7µs 대 0.45µs(55배), fork 21ms 대 0.11ms, exec 33ms 대 0.53ms"),
        "Barham et al., SOSP 2003, tables",
        False,
    ),
    Published(
        Text("Building Linux on User-mode Linux", "User-mode Linux에서 리눅스 커널 빌드"),
        Text("535 s to 263 s (2.0 times)", "535초 대 263초(2.0배)"),
        "Barham et al., SOSP 2003, figure",
        False,
    ),
    Published(
        Text("QEMU’s user mode of 2005", "2005년 QEMU 사용자 모드"),
        Text("integers about 4 times, floating point about 10 times slower; the software MMU 2 times more",
             "정수 연산 약 4배, 부동소수점 약 10배 느림, 소프트웨어 MMU를 쓰면 2배 더 느림"),
        "F. Bellard, USENIX 2005",
        False,
    ),
)  # fmt: skip
