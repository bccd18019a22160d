"""Frequencies of the Gaussian table with 128 scales from 0.11 to 16 in zigzag order (docs/bitstream.md), as integers.

An array [17, 128] uint16: frequency of the symbols -8 .. 8 for each scale, 0 where the symbol escapes. Stored as
differences along the scales modulo 65536, all low bytes and then all high bytes, zlib, base 85.
"""

PACKED_FREQUENCIES = (
    "c-muNpe9fj5SLZeF|&2|3yn)mP0z?kO^OW*^m4K?(pHof;$da@@%8=dXOAD=zjN#6_3PKKUcE*=yXA#MWmR>}9esl1QgRDR%F9cOax)Sm1KjORb(N)"
    "rxtM={`|$ed<9oMnT)T4l(uE7>LFgh?td`&vkyO++v-b&4$StjF?&$39Y-y-0%7_c`vNzF`7vo|1^Y!hEhj(vYyLjR3>60f<oH%j(#PO4-PMtnOq0I"
    "u^{6JqD*m#B|7u9u6nZ01i(xnS#Pwr_b$%^rJHq(+5;`saZ?bCZVE}uPp?C_xj`}XbGvwQE}ef#zwJaG8vk>e-GwV0QKS4dJ>&(bp@qq1}6@~wN1pF"
    "Vf`)S;d07f)-eNQ-p0(30k5{PybMjSD9a@7uX;^TxI7R<B;YX7#$Y>(_7Gymi}-UAy-lIC%IdX|}SluyYHFE9h8wMCCS4Uw!EE(=QC{ygb}2f8ISfz"
    "jwv7hO97W18Lr0Z|`3`zIV&oWeaA{m^yJ{|AhYji4&$wo;G9l?D-29FI}-}{rXK?x9!}s_rM`W0yZ)+v2t(=NGR%B`^1;_tvGV;kA#6oOipD(Q)6Xb"
    "ypM?-<I@u>d-8+L<XGO{IJRZ+w62EI{Pg6wsHlkW@QBFh*o4H?jGX+Uipsji){egZDKloxUAT0`>UA47Z`-wN-vN;QOw24C+=5^`63Zs6KKYzo!!xs"
    "U`O*77`IJo^eM2K7LVX<!q!=F`o>%Ux^zFp#JZFgyCzrJ(d+AHCetvxY%#nS&wr<(7b=$7J2alb(eEt5@w_koSa|(*ftLd6pIe7R5M<t|X6_!@jw|4"
    "YSoHk?bf@RBBuivm`$IiX`e*^9R_xszYm-jF1Th^KGAoOrmzR|}G`Fig*mOJu4*fFgv#?w+qQ$<bN*xoxfziImV;}3oc>3Ss9PTzF;*?)0EkA$+G#o"
    "N!_|H3AvY3mc6Q`I$X*@pe6u0DGGoq<bOMpf6;*2O0%GBG8$puDE3rKf-LbYLo7wtDS`%{zAN*$)nXCN?%6P#D|z##i*OKJlDG!y~hE#gPX;1kwCIz"
    "l_@cClvpT%&Z(-pt!N}rAhpgmi}2;*@20Xn(3e1{LjNV5c!`f<=>t?R4D%jN%=oG>c2rz{}ToNql1C8n~wJX#{~w^YTDcXpD>`<4n{B_*<SMPXG8<!"
    "*h;{DxY<l70NFmc0sn9S5*&cS2kHF_1b;x_H+Jv`4*ntlc}^H;{}0OeAJpl8kmdiuT>cG;@_$g&e>mL$0Hw}pqW"
)
